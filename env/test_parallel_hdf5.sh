#!/usr/bin/env bash
# The whole pipeline and the storage tests with an h5py built on parallel HDF5. `make test-parallel-hdf5`
# calls it. It makes a second environment, PARALLEL, that shares the packages of VENV, which `make
# test` made. If that can't be built, the tests are skipped, with the reason in one line. Variables:
#   VENV, PARALLEL  the environments                              (.venv, .venv-parallel)
#   HDF5_DIR        parallel HDF5                                 (Debian's for Open MPI)
#   MPICC           compiler of its MPI, beside its mpiexec       (/usr/bin/mpicc)
#   APT             no: install nothing if Debian's packages are missing
set -euo pipefail
unset CDPATH
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
    echo "== env/debian.sh openmpi hdf5 scotch"
    env/debian.sh openmpi hdf5 scotch >/dev/null || skip "$lacking, and apt-get can't install them"
fi
if ! present; then
    echo "test_parallel_hdf5.sh: no $HDF5_DIR/lib/libhdf5.so or no $MPICC" >&2
    exit 2
fi
echo '#include <Python.h>' |
    "$MPICC" -E -I"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        - >/dev/null 2>&1 || skip "$MPICC finds no Python.h: run \`sudo env/debian.sh tools\`"

base=$VENV
CFLAGS=${CFLAGS:--O0 -g0} VENV=$PARALLEL BASE=$base MPI=system HDF5=parallel env/install.sh
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

# hpcgnn RANKS VERB...: runs a verb; with 0 ranks, without mpiexec.
hpcgnn() {
    local launcher=()
    [ "$1" = 0 ] || launcher=(mpiexec -n "$1")
    shift
    "${launcher[@]}" python -m hpcgnn "$@"
}

# The same with the HDF5 and the MPI of VENV.
usual() { PATH=$(cd "$VENV/bin" && pwd):$PATH hpcgnn "$@"; }

# same TEST FILE OTHER: equal datasets by numpy's TEST, where OTHER comes from serial HDF5.
same() {
    "$VENV/bin/python" - "$@" <<'PYTHON'
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


test, (path, other) = getattr(np, sys.argv[1]), map(Path, sys.argv[2:])
one, two = arrays(path), arrays(other)
if one.keys() != two.keys():
    raise SystemExit(f"{path.name} and {other.name} have different datasets")
differ = [name for name in one if not test(one[name], two[name])]
if differ:
    raise SystemExit(f"{path.name} and {other.name} differ in {', '.join(differ)}")
print(f"{path.name}: {len(one)} datasets as with serial HDF5")
PYTHON
}

# Archives to convert: the generated graph, and a star whose cost is all in its centre.
sources() {
    "$VENV/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import h5py
import numpy as np

folder = Path(sys.argv[1])
with h5py.File(folder / "generated.h5") as file:
    arrays = {name: file[f"edges/{name}"][...] for name in ("indptr", "indices")}
    arrays |= {name: file[f"nodes/{name}"][...] for name in ("features", "labels")}
    split = file["nodes/split"][:, 0]
sets = {name: np.flatnonzero(split == k) for k, name in enumerate(("train", "valid", "test"), 1)}
np.savez(folder / "web.npz", **arrays, **sets)
nodes = np.arange(40)
np.savez(
    folder / "star.npz",
    indptr=np.maximum(np.arange(41) - 1, 0),  # a row holds the targets of its edges
    indices=np.zeros(39, int),
    features=np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32),
    labels=nodes % 3,
    train=nodes[:20],
    valid=nodes[20:30],
    test=nodes[30:],
)
PYTHON
}

# pipeline NAME RANKS PARTITION-OPTIONS...: both environments must predict the same from its files.
pipeline() {
    local name=$1 ranks=$2 graph=$folder/$1.h5 parts=$folder/$1-parts.h5 run=$folder/$1-run
    shift 2
    hpcgnn 0 convert "$folder/$name.npz" "$graph"
    hpcgnn "$ranks" partition "$graph" "$@" --compress -o "$parts"
    hpcgnn "$ranks" train "$parts" --hidden 16 --epochs 4 --checkpoint-every 2 --run-dir "$run"
    hpcgnn "$ranks" predict "$parts" "$run/checkpoints/best.h5" -o "$folder/$name-classes.h5"
    usual "$ranks" predict "$parts" "$run/checkpoints/best.h5" -o "$folder/$name-usual-classes.h5"
    same allclose "$folder/$name-classes.h5" "$folder/$name-usual-classes.h5"
}

# partitions NAME RANKS OPTIONS...: both environments must make the same partition file.
partitions() {
    local name=$1 ranks=$2 graph=$folder/$1.h5 parts=$folder/$1-again.h5
    shift 2
    hpcgnn "$ranks" partition "$graph" "$@" --compress -o "$parts" >/dev/null
    usual "$ranks" partition "$graph" "$@" -o "$folder/$name-usual.h5" >/dev/null
    same array_equal "$parts" "$folder/$name-usual.h5"
}

# VENV's ParMETIS belongs to VENV's MPI, but PT-Scotch's may be installed for this one.
method=parmetis
if ! python -c 'from hpcgnn.partition.pyparmetis import builds as p; print("==", p.open_library(p.find()))' 2>/dev/null; then
    method=kaminpar
    echo "== no ParMETIS for this MPI, so KaMinPar (\`sudo env/debian.sh scotch\` installs PT-Scotch's)"
fi
echo "== pipeline, 2 ranks, $method"
hpcgnn 2 generate sbm "$folder/generated.h5" --nodes 3000 --degree 12 --features 16 --classes 4
sources
pipeline web 2 --method "$method"
same array_equal "$folder/web.h5" "$folder/generated.h5"
partitions web 2 --method kaminpar --repeatable
echo "== pipeline, 2 ranks, one of them with an empty part"
pipeline star 2 --method streaming --node-cost 0
partitions star 2 --method streaming --node-cost 0
python - "$folder/star-parts.h5" <<'PYTHON'
import sys

import h5py

nodes = h5py.File(sys.argv[1])["exchange/sizes"][:, 0]
if nodes.all():
    raise SystemExit(f"test_parallel_hdf5.sh: no part of the star is empty: {nodes}")
print(f"nodes per part: {nodes}")
PYTHON
echo "== pipelines: done after $SECONDS s"
echo "== tests, 3 ranks"
# shellcheck disable=SC2016
mpiexec -n 3 sh -c \
    '[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}" = 0 ] || exec >/dev/null; exec "$@"' - \
    python -m pytest tests/storage tests/cli/test_train.py -m mpi -q
echo "== tests, 3 ranks: done after $SECONDS s"
echo "== tests of lost ranks"
python -m pytest tests/storage/write/test_parallel.py -q
echo "== parallel HDF5: all passed in $SECONDS s"
