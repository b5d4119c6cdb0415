#!/usr/bin/env bash
# Every registered method, briefly: 15 epochs of the digits at Linf 0.2, and 5 epochs over 2,000 images of CIFAR-10 at
# 8/255 on PreActResNet-18 of width 16; softplus where a gradient is differentiated, ReLU elsewhere. Judged by PGD-50 on
# 500 test images. About half an hour on one CPU core.
#   benchmarks/every_method.sh [METHOD ...]; then python benchmarks/every_method.py runs/every-method
# RUNS (runs/every-method) is where everything goes, DATA (../shared/data) the folder with the two Parquet files; without
# them the digits alone are run, saying so. Finished runs are not run again; a killed run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/every-method}
PLANISH=${PLANISH:-.venv/bin/planish}
DATA=${DATA:-../shared/data}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

options() { # what a method sets beyond the shared configuration; Free's epochs are passes over the data times replays
  case $1 in
    free) echo "--set method.replays=5 --set settings.epochs=$(($2 / 5))" ;;
    gradient-penalty) echo "--set method.weight=1.0" ;;
    cure) echo "--set method.warmup=0.0 --set model.activation=softplus" ;;
    llr | grad-align) echo "--set model.activation=softplus" ;;
  esac
}

[ $# -gt 0 ] || set -- standard free fgsm rs-fgsm n-fgsm sub-at fgsm-ep fgsm-mep gradient-penalty gat nuat qub ssat seat \
  seat-fl seat-published grad-align cure llr elle elle-a pgd mart trades fgsm-pco liet sora planish-at
for method in "$@"; do
  # shellcheck disable=SC2046
  $PLANISH train --data digits --method "$method" --out "$RUNS/digits/$method" --resume -q --set threat.radius=0.2 \
    --set settings.epochs=15 --set settings.batch_size=64 \
    --set settings.learning_rate=0.1 $(options "$method" 15)
  $PLANISH evaluate "$RUNS/digits/$method" --data digits --radius 0.2 --attacks pgd-50-1 --limit 500 -q \
    --name "$method" --out "$RUNS/digits/$method" --resume
  [ -f "$DATA/cifar10-jpeg75-test.parquet" ] || { echo "no CIFAR-10 in $DATA: $method on the digits alone"; continue; }
  # shellcheck disable=SC2046
  $PLANISH train --data "$DATA/cifar10-jpeg75-train.parquet" --method "$method" --out "$RUNS/cifar10/$method" --resume -q \
    --set model.name=preact-resnet-18 --set model.width=16 --set data.limit=2000 \
    --set data.crop=4 --set data.flip=true --set settings.epochs=5 --set settings.learning_rate=0.1 \
    --set settings.precision=bf16 $(options "$method" 5)
  $PLANISH evaluate "$RUNS/cifar10/$method" --data "$DATA/cifar10-jpeg75-test.parquet" --radius 8/255 \
    --attacks pgd-50-1 --limit 500 --precision bf16 -q --name "$method" --out "$RUNS/cifar10/$method" --resume
done
