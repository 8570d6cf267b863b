#!/usr/bin/env bash
# The whole way and the storage tests with an h5py built on parallel HDF5. `make test-parallel-hdf5`
# calls it. It makes a second environment, PARALLEL, that shares VENV's packages (VENV: `make test`
# made it), and skips, with the reason in one line, only where that can't be built. Variables:
#   VENV, PARALLEL  the environments                              (.venv, .venv-parallel)
#   HDF5_DIR        parallel HDF5                                 (Debian's for Open MPI)
#   MPICC           compiler of its MPI; mpiexec lies beside it   (/usr/bin/mpicc)
#   APT             no: install nothing where Debian's parts are missing
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv} PARALLEL=${PARALLEL:-.venv-parallel}
given=${HDF5_DIR:-}
HDF5_DIR=${HDF5_DIR:-/usr/lib/$(uname -m)-linux-gnu/hdf5/openmpi}
MPICC=$(command -v "${MPICC:-/usr/bin/mpicc}" || echo "${MPICC:-/usr/bin/mpicc}")
export HDF5_DIR MPICC

skip() {
    echo "parallel HDF5 tests skipped: $*"
    exit 0
}

present() { [ -e "$HDF5_DIR/lib/libhdf5.so" ] && [ -x "$MPICC" ]; }

if ! present && [ -z "$given" ]; then
    lacking="no $HDF5_DIR/lib/libhdf5.so with $MPICC"
    command -v apt-get >/dev/null || skip "$lacking, and no apt-get: set HDF5_DIR and MPICC"
    [ "$(id -u)" = 0 ] || skip "$lacking: run \`sudo env/debian.sh openmpi hdf5\`"
    [ "${APT:-yes}" = yes ] || skip "$lacking, and APT=$APT"
    echo "== env/debian.sh openmpi hdf5"
    env/debian.sh openmpi hdf5 >/dev/null || skip "$lacking, and apt-get can't install them"
fi
if ! present; then
    echo "test_parallel_hdf5.sh: no $HDF5_DIR/lib/libhdf5.so or no $MPICC" >&2
    exit 2
fi
echo '#include <Python.h>' |
    "$MPICC" -E -I"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        - >/dev/null 2>&1 || skip "$MPICC finds no Python.h: run \`sudo env/debian.sh tools\`"

base=$VENV
CFLAGS=${CFLAGS:--O1 -g0} VENV=$PARALLEL BASE=$base MPI=system HDF5=parallel env/install.sh
PATH=$(cd "$PARALLEL/bin" && pwd):$(dirname "$MPICC"):$PATH
export PATH PYTHONPATH=$PWD/src OMP_NUM_THREADS=1
python - <<'PYTHON'
import h5py

if not h5py.get_config().mpi:
    raise SystemExit(f"test_parallel_hdf5.sh: {h5py.__file__} is not built on parallel HDF5")
print(f"== h5py {h5py.__version__} on parallel HDF5 {h5py.version.hdf5_version}")
PYTHON

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

hpcgnn() {
    local ranks=$1
    shift
    mpiexec -n "$ranks" python -m hpcgnn.cli.main "$@"
}

# The same with the HDF5 and the MPI of VENV.
usual() {
    local ranks=$1
    shift
    PATH=$(cd "$VENV/bin" && pwd):$PATH hpcgnn "$ranks" "$@"
}

# Both kinds must make the same partition file and read the same from it.
pipeline() {
    local ranks=$1 graph=$folder/graph$1.h5 parts=$folder/parts$1.h5 run=$folder/run$1
    hpcgnn "$ranks" generate sbm "$graph" --nodes 3000 --degree 12 --features 16 --classes 4
    hpcgnn "$ranks" partition "$graph" --method metis --compress -o "$parts"
    hpcgnn "$ranks" train "$parts" --hidden 16 --epochs 4 --checkpoint-every 2 --run-dir "$run"
    hpcgnn "$ranks" predict "$parts" "$run/checkpoints/best.h5" -o "$folder/predictions.h5"
    usual "$ranks" partition "$graph" --method metis -o "$folder/usual-parts.h5"
    usual "$ranks" predict "$parts" "$run/checkpoints/best.h5" -o "$folder/usual-predictions.h5"
    "$VENV/bin/python" - "$folder" "$parts" <<'PYTHON'
import sys
from pathlib import Path

import h5py
import numpy as np


def arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[...]})
            if isinstance(item, h5py.Dataset)
            else None
        )
    return found


folder, parts = map(Path, sys.argv[1:])
for path, other, same in (
    (parts, folder / "usual-parts.h5", np.array_equal),
    (folder / "predictions.h5", folder / "usual-predictions.h5", np.allclose),
):
    one, two = arrays(path), arrays(other)
    if one.keys() != two.keys():
        raise SystemExit(f"{path.name} and {other.name} have different datasets")
    differ = [name for name in one if not same(one[name], two[name])]
    if differ:
        raise SystemExit(f"{path.name} and {other.name} differ in {', '.join(differ)}")
    print(f"{path.name}: {len(one)} datasets as with serial HDF5")
PYTHON
}

echo "== pipeline, 2 ranks"
pipeline 2
echo "== pipeline, 2 ranks: done after $SECONDS s"
echo "== tests, 3 ranks"
# shellcheck disable=SC2016
mpiexec -n 3 sh -c \
    '[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}" = 0 ] || exec >/dev/null; exec "$@"' - \
    python -m pytest tests/storage tests/cli/test_train.py -m mpi -q
echo "== tests, 3 ranks: done after $SECONDS s"
echo "== tests of lost ranks"
python -m pytest tests/storage/test_parallel.py -q
echo "== parallel HDF5: all passed in $SECONDS s"
