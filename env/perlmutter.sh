#!/usr/bin/env bash
# Makes the Python environment on a Perlmutter login node: Cray MPICH, parallel HDF5, ParMETIS.
#
#     env/perlmutter.sh gpu|cpu          -> .venv-perlmutter-gpu or .venv-perlmutter-cpu (or VENV)
#
# Put the clone on $SCRATCH or in /global/common/software, not in $HOME: thousands of ranks import it.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

kind=${1:-}
case $kind in
    gpu) cuda=12 mpi4py_cc="cc -target-accel=nvidia80 -shared" ;;
    cpu) cuda=none mpi4py_cc="cc -shared" ;;
    *)
        echo "usage: env/perlmutter.sh gpu|cpu" >&2
        exit 2
        ;;
esac
VENV=${VENV:-.venv-perlmutter-$kind}

# shellcheck source=jobs/perlmutter_modules.sh
source jobs/perlmutter_modules.sh "$kind"

VENV=$VENV PYTHON=python MPI=system MPICC=cc HDF5=parallel CUDA=$cuda env/install.sh

# mpi4py's wheel works too, but does not load the library with which Cray MPICH reads GPU memory.
MPICC=$mpi4py_cc "$VENV/bin/python" -m pip install --quiet --force-reinstall --no-cache-dir --no-deps \
    --no-binary=mpi4py "$(grep '^mpi4py==' env/requirements.lock)"
echo "done: source jobs/profiles/perlmutter-$kind.sh, then sbatch --account=... jobs/train.sbatch ..."
