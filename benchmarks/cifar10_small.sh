#!/usr/bin/env bash
# Train and judge every method of benchmarks/cifar10_small.toml: PreActResNet-18 of width 16, 10 epochs over the first
# 25,000 training images, Linf radius 8/255, PGD-50 x 10 and multi-targeted on the first 1,000 test images.
# About five hours on two CPU cores with one process on each. Finished rows are not run again; a killed run goes on.
#   benchmarks/cifar10_small.sh [METHOD ...]
# RUNS (runs/cifar10-small) is where everything goes, DATA (../shared/data) the folder with the two Parquet files.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/cifar10-small}
PLANISH=${PLANISH:-.venv/bin/planish}
DATA=${DATA:-../shared/data}
TRAIN=$DATA/cifar10-jpeg75-train.parquet TEST=$DATA/cifar10-jpeg75-test.parquet
[ -f "$TEST" ] || { echo "no $TEST: set DATA to a folder with CIFAR-10 as Parquet files" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

options() { # what a method sets beyond the shared configuration
  case $1 in
    llr-2) echo "--set model.activation=softplus --set settings.learning_rate=0.1" ;;
    pgd-7) echo "--set settings.compile=true" ;;
    gradient-penalty) echo "--set method.weight=1.0" ;;
    seat-fl) echo "--set method.flood=1.2" ;;
  esac
}

[ $# -gt 0 ] || set -- standard fgsm rs-fgsm n-fgsm seat seat-fl llr-2 gradient-penalty pgd-7
for method in "$@"; do
  # shellcheck disable=SC2046
  $PLANISH train benchmarks/cifar10_small.toml --data "$TRAIN" --method "$method" $(options "$method") --out "$RUNS/$method" --resume
  $PLANISH evaluate "$RUNS/$method" --data "$TEST" --radius 8/255 --attacks pgd-50-10,multi-targeted-20-1 \
    --limit 1000 --precision bf16 --out "$RUNS/$method" --resume
done
$PLANISH report $(for method in "$@"; do echo "$RUNS/$method"; done) --out "$RUNS" --overwrite --title "CIFAR-10 (cifar10-jpeg75), small"
