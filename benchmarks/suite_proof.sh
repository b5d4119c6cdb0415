#!/usr/bin/env bash
# Judge the networks of benchmarks/suite_models.sh by planish-suite, planish-deep and CR Attack, and what planish-suite
# leaves standing by the public AutoAttack; then `python benchmarks/proof.py`. Hours on one CPU core, mostly AutoAttack's.
#   benchmarks/suite_proof.sh [GROUP ...]
# A group is linf, l2, more, hundred, wide or hidden. RUNS (runs/suite) is where the networks are: those of the script above,
# and the first three seeds of `planish reproduce seat-table-1 --scale small`, of which the first collapsed: fgsm-at,
# fgsm-at.seed-1 and -2. OUT (benchmarks/results/suite/proof) is where everything goes. IMAGES of the test set for every
# model, or else 1000 for linf and l2, 50 for hidden, 500 for others; NEAREST (10) of the survivors: more may be asked
# for later. A killed run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/suite}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-../shared/data}
OUT=${OUT:-benchmarks/results/suite/proof}
MORE=${MORE:-n-fgsm awp trades gradient-penalty seat}
export RUNS OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

judge() { # judge GROUP DATA IMAGES NORM RADIUS MODEL...
  local group=$1 data=$2 images=$3 norm=$4 radius=$5
  shift 5
  $PYTHON benchmarks/suite.py "$@" --data "$data" --images "$images" --norm "$norm" --radius "$radius" \
    --suites "${SUITES:-planish-deep,CR Attack,planish-suite,public AutoAttack}" --reference planish-suite \
    --survivors-only --nearest "${NEAREST:-10}" --out "$OUT/$group"
}

[ $# -gt 0 ] || set -- linf l2 more hundred wide hidden
test=$DATA/cifar10-jpeg75-test.parquet
for group in "$@"; do
  case $group in
    linf) judge linf "$test" "${IMAGES:-1000}" Linf 8/255 "$RUNS/pgd-7" ;;
    # shellcheck disable=SC2046
    more) judge more "$test" "${IMAGES:-500}" Linf 8/255 $(for name in $MORE; do echo "$RUNS/$name"; done) ;;
    l2) judge l2 "$test" "${IMAGES:-1000}" L2 0.5 "$RUNS/l2" ;;
    hundred) judge hundred "$RUNS/hundred-classes" "${IMAGES:-500}" Linf 2/255 "$RUNS/hundred" ;;
    wide) judge wide "$test" "${IMAGES:-500}" Linf 8/255 "$RUNS/fgsm-at.seed-1" "$RUNS/fgsm-at.seed-2" ;;
    hidden)
      SUITES="CR Attack,planish-suite,public AutoAttack" judge hidden "$test" "${IMAGES:-50}" Linf 8/255 "$RUNS/fgsm-at" \
        benchmarks/hidden.py:confident benchmarks/hidden.py:off_the_grid
      ;;
    *) echo "no group $group" >&2; exit 2 ;;
  esac
done
