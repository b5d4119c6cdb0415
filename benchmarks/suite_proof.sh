#!/usr/bin/env bash
# Judge the networks of benchmarks/suite_models.sh by planish-suite, planish-deep and CR Attack, and what planish-suite
# leaves standing by the public AutoAttack; then `python benchmarks/proof.py`. Hours on one CPU core, mostly AutoAttack's.
#   benchmarks/suite_proof.sh [GROUP ...]
# A group is linf, l2, hundred, wide or hidden. RUNS (runs/suite) is where the networks are: those of the script above,
# and of `planish reproduce seat-table-1 --scale small` those named fgsm-at, which collapsed, fgsm-at.seed-1 and rs-fgsm.
# OUT (benchmarks/results/suite/proof) is where everything goes. LINF names the models of the group linf. IMAGES of the
# test set for every model, or else 10000, 2000 for wide and 200 for hidden; the first CRS (1000) of them for CR Attack;
# NEAREST (50, 5 for hidden) of the survivors for AutoAttack: more may be asked for later. A killed run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/suite}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-../shared/data}
OUT=${OUT:-benchmarks/results/suite/proof}
LINF=${LINF:-pgd-7 n-fgsm awp trades gradient-penalty seat}
export RUNS OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

judge() { # judge GROUP DATA IMAGES NORM RADIUS MODEL...
  local group=$1 data=$2 images=${IMAGES:-$3} nearest=${NEAREST:-$4} norm=$5 radius=$6
  shift 6
  $PYTHON benchmarks/suite.py "$@" --data "$data" --images "$images" --norm "$norm" --radius "$radius" \
    --suites "${SUITES:-planish-deep,CR Attack,planish-suite,public AutoAttack}" --reference planish-suite \
    --survivors-only --nearest "$nearest" --late --peer-images "${CRS:-1000}" --chunk 100 --out "$OUT/$group"
}

[ $# -gt 0 ] || set -- linf l2 hundred wide hidden
test=$DATA/cifar10-jpeg75-test.parquet
for group in "$@"; do
  case $group in
    # shellcheck disable=SC2046
    linf) judge linf "$test" 10000 50 Linf 8/255 $(for name in $LINF; do echo "$RUNS/$name"; done) ;;
    l2) judge l2 "$test" 10000 50 L2 0.5 "$RUNS/l2" ;;
    hundred) judge hundred "$RUNS/hundred-classes" 10000 50 Linf 2/255 "$RUNS/hundred" ;;
    wide) judge wide "$test" 2000 50 Linf 8/255 "$RUNS/fgsm-at.seed-1" "$RUNS/rs-fgsm" ;;
    hidden)
      SUITES="CR Attack,planish-suite,public AutoAttack" judge hidden "$test" 200 5 Linf 8/255 "$RUNS/fgsm-at" \
        benchmarks/hidden.py:confident benchmarks/hidden.py:off_the_grid
      ;;
    *) echo "no group $group" >&2; exit 2 ;;
  esac
done
