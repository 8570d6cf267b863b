#!/usr/bin/env bash
# The full fault tests, for an idle node: more than a hundred signals at random ranks and moments of
# convert, partition, train and predict, then five hundred damaged files. Minutes to an hour; the
# last lines give the number of failures, and the exit status is 1 if any. Needs the test environment.
#     jobs/faults.sh [SEED [COUNT]]
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
python=${HPCGNN_VENV:-.venv}/bin/python
export OMP_NUM_THREADS=1
# shellcheck source=jobs/attended.sh
source jobs/attended.sh
attended "$python" -m tests.faults.sweep --seed "${1:-0}" --count "${2:-130}"
attended "$python" -m tests.faults.corruption --seed "${1:-0}" --count 500
