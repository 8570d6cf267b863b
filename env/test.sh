#!/usr/bin/env bash
# Style, types, scripts, then the tests: all of them on one rank, those marked mpi on the numbers of
# ranks given. `make test` calls it with the environment's programs first in PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

failed=()
# check NAME COMMAND...: runs COMMAND; a failure is remembered, and the next check goes on.
check() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - began)) s"
}

# One rank's report is enough; the traceback of a failing rank comes on its stderr. Many ranks share
# few cores: above 4 only what depends on the number of ranks most.
# on_ranks COUNT [PYTEST_ARGUMENT...]
on_ranks() {
    local ranks=$1 chosen=("${@:2}")
    if [ ${#chosen[@]} = 0 ]; then
        chosen=(tests)
        [ "$ranks" -le 4 ] || chosen=(tests/comm tests/partition tests/sar tests/nn)
    fi
    # shellcheck disable=SC2016
    mpiexec -n "$ranks" sh -c \
        '[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}" = 0 ] || exec >/dev/null; exec "$@"' - \
        python -m pytest "${chosen[@]}" -m mpi -q
}

# show PROCESS LOG: waits for the process, prints what it wrote; its status.
show() {
    local status=0
    wait "$1" || status=$?
    cat "$2"
    return "$status"
}

# Without Slurm its tests are skipped and say so. APT=no installs nothing.
if [ "${APT:-yes}" = yes ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
    ! PATH=$PATH:/usr/sbin command -v slurmd >/dev/null; then
    echo "== env/debian.sh slurm"
    env/debian.sh slurm >/dev/null || echo "== apt-get found no Slurm"
fi
check style ruff check .
check types mypy
check scripts shellcheck env/*.sh jobs/*.sh jobs/*.sbatch jobs/profiles/*.sh .ci/run
# Slurm's tests mostly wait, so they run beside the others.
log=$(mktemp)
python -m pytest tests/slurm -q >"$log" 2>&1 &
slurm=$!
check "tests, 1 rank" python -m pytest tests -q --ignore=tests/slurm --durations=12 \
    -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
check "tests, Slurm" show "$slurm" "$log"
rm -f "$log"
for ranks in "$@"; do
    check "tests, $ranks ranks" on_ranks "$ranks"
done
# What a late rank holds for each of the others shows where they are many.
check "a late rank of 8" on_ranks 8 tests/comm/test_unfinished.py -k late_rank
if [ ${#failed[@]} -gt 0 ]; then
    printf '== FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "== all passed in $SECONDS s"
