#!/usr/bin/env bash
# Style, types, scripts, then the tests: all of them on one rank, those marked mpi on the numbers of
# ranks given. `make test` calls it with the environment's programs first in PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

run() {
    echo "== $*"
    "$@"
}

# Without Slurm its tests are skipped and say so. APT=no installs nothing.
if [ "${APT:-yes}" = yes ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
    ! PATH=$PATH:/usr/sbin command -v slurmd >/dev/null; then
    run env/debian.sh slurm >/dev/null || echo "== apt-get found no Slurm"
fi
run ruff check .
run mypy
run shellcheck env/*.sh jobs/*.sh jobs/*.sbatch jobs/profiles/*.sh .ci/run
run python -m pytest tests -q
for ranks in "$@"; do
    echo "== $ranks ranks: python -m pytest tests -m mpi -q"
    # One rank's report is enough; the traceback of a failing rank comes on its stderr.
    # shellcheck disable=SC2016
    mpiexec -n "$ranks" sh -c \
        '[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}" = 0 ] || exec >/dev/null; exec "$@"' - \
        python -m pytest tests -m mpi -q
done
