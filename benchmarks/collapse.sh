#!/usr/bin/env bash
# FGSM training that collapses, and the same runs with --guard: three seeds each, judged by FGSM and PGD-50 x 10 on the
# first 500 test images. About 40 minutes on one CPU core. Finished runs are not run again; a killed run goes on.
#   benchmarks/collapse.sh [SEED ...]; then python benchmarks/collapse.py runs/collapse
# RUNS (runs/collapse) is where everything goes, DATA (../shared/data) the folder with the two Parquet files.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/collapse}
PLANISH=${PLANISH:-.venv/bin/planish}
DATA=${DATA:-../shared/data}
TRAIN=$DATA/cifar10-jpeg75-train.parquet TEST=$DATA/cifar10-jpeg75-test.parquet
[ -f "$TEST" ] || { echo "no $TEST: set DATA to a folder with CIFAR-10 as Parquet files" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

[ $# -gt 0 ] || set -- 0 1 2
for seed in "$@"; do
  for guard in "" --guard; do
    run=$RUNS/fgsm$guard-$seed
    $PLANISH train benchmarks/collapse.toml --data "$TRAIN" --seed "$seed" $guard --out "$run" --resume
    $PLANISH evaluate "$run" --data "$TEST" --radius 12/255 --attacks fgsm,pgd-50-10 --limit 500 --precision bf16 \
      --name "FGSM${guard:+ with guard}, seed $seed" --out "$run" --resume
  done
done
