#!/usr/bin/env bash
# Train networks that planish's suites were not tuned on, for benchmarks/suite.py: four epochs over 12,000 images each,
# six for a hundred classes. About twenty minutes on one CPU core. Finished runs are not run again; a killed run goes on.
#   benchmarks/suite_models.sh [MODEL ...]
# RUNS (runs/suite) is where everything goes, DATA (../shared/data) the folder with the two Parquet files. Behind what
# hides their gradients: benchmarks/hidden.py.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/suite}
PLANISH=${PLANISH:-.venv/bin/planish}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-../shared/data}
TRAIN=$DATA/cifar10-jpeg75-train.parquet
[ -f "$TRAIN" ] || { echo "no $TRAIN: set DATA to a folder with CIFAR-10 as Parquet files" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

options() { # what a model sets beyond the shared configuration
  local preact="--set model.name=preact-resnet-18 --set model.width=8"
  case $1 in
    n-fgsm) echo "--method n-fgsm $preact" ;;
    awp) echo "--method n-fgsm --set settings.weight_perturbation=0.005" ;;
    seat) echo "--method seat" ;;
    gradient-penalty) echo "--method gradient-penalty --set method.weight=1.0" ;;
    pgd-7) echo "--method pgd" ;;
    trades) echo "--method trades --set method.steps=3" ;;
    l2) echo "--method pgd --set method.steps=3 --set threat.norm=L2 --set threat.radius=0.5" ;;
    hundred) echo "--method n-fgsm --set threat.radius=2/255 --set settings.epochs=6" ;;
    *) echo "no model $1" >&2; exit 2 ;;
  esac
}

[ $# -gt 0 ] || set -- n-fgsm hundred l2 awp pgd-7 gradient-penalty trades seat
for model in "$@"; do
  source=$TRAIN
  if [ "$model" = hundred ]; then
    $PYTHON benchmarks/hundred.py --data "$DATA" --out "$RUNS/hundred-classes"
    source=$RUNS/hundred-classes
  fi
  # shellcheck disable=SC2046
  $PLANISH train benchmarks/suite_models.toml --data "$source" $(options "$model") --out "$RUNS/$model" --resume -q
done
