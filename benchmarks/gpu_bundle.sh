#!/usr/bin/env bash
# Gathers wheels for a machine without network: torchattacks, which gpu.py compares with if it is there, or the packages
# named. Their own requirements are not gathered: name those that the machine lacks.
#
#   bash benchmarks/gpu_bundle.sh FOLDER [PACKAGE ...]        # PYTHON_VERSION=3.12 unless set
#
# On that machine:
#
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
#   PYTHONPATH=SITE:src python3 benchmarks/gpu.py ...
set -euo pipefail
folder=${1:?name the folder that the wheels go to}
shift
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
  platforms+=(--platform "$platform")
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp "${platforms[@]}" \
  --python-version "${PYTHON_VERSION:-3.12}" --dest "$folder" "${@:-torchattacks}"
ls -l "$folder"
