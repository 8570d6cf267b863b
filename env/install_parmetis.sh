#!/bin/sh
# Builds ParMETIS 4.0.3 for the MPI of one Python environment, from the source package mgmetis.
#
#     env/install_parmetis.sh [--force] [PYTHON]       (default: .venv/bin/python)
#
# The libraries stay inside the package mgmetis, where hpcgnn finds them automatically. MPICC names the
# compiler of the MPI that mpi4py uses; the default is the mpicc beside PYTHON, then the one in PATH.
# Takes about a minute; a second call does nothing.
set -eu
unset CDPATH

force=no
if [ "${1:-}" = --force ]; then
    force=yes
    shift
fi
python=${1:-.venv/bin/python}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
bin=$(dirname "$("$python" -P -c 'import sys; print(sys.executable)')")
site=$("$python" -P -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

if [ $force = no ] && ls "$site"/mgmetis/_cython/parmetis64*.so >/dev/null 2>&1; then
    echo "ParMETIS is already installed: $site/mgmetis/_cython (--force builds it again)"
    exit 0
fi

mpicc=${MPICC:-}
[ -n "$mpicc" ] || { [ -x "$bin/mpicc" ] && mpicc=$bin/mpicc; } || mpicc=$(command -v mpicc || true)
if [ -z "$mpicc" ]; then
    echo "install_parmetis.sh: no mpicc beside $python nor in PATH: set MPICC" >&2
    exit 2
fi

cat <<'NOTICE'
ParMETIS 4.0.3 is built from the source package mgmetis 0.1.1 (pypi.org/project/mgmetis).
  Licence: ParMETIS is copyright Regents of the University of Minnesota. It may be used for
  educational and research purposes by non-profit institutions and US government agencies;
  other organisations may use it for evaluation only; it may not be redistributed.
  hpcgnn ships nothing of it. Without it: hpcgnn partition --method kaminpar|streaming|random|block
NOTICE

# mgmetis takes the compiler from mpi4py's mpi.cfg, which mpi4py's wheels lack.
cfg=$("$python" -P -c 'import mpi4py, os; print(os.path.dirname(mpi4py.__file__))')/mpi.cfg
saved=
if [ -e "$cfg" ]; then
    saved=$cfg.saved
    mv "$cfg" "$saved"
fi
restore() {
    rm -f "$cfg"
    [ -z "$saved" ] || mv "$saved" "$cfg"
}
trap restore EXIT
printf '[mpi]\nmpicc = %s\n' "$mpicc" >"$cfg"

# Debian's Python links with -L/usr/lib/..., which may contain another MPI: the wanted one goes first.
lib=$(dirname "$mpicc")/../lib
[ ! -d "$lib" ] || export LDFLAGS="-L$lib ${LDFLAGS:-}"

# setuptools takes these in place of Python's own, which ask for debugging information.
export CFLAGS="${CFLAGS:-$("$python" -P -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') -g0}"

"$python" -P -m pip install --quiet --disable-pip-version-check cython setuptools wheel
# --no-cache-dir: otherwise pip would reuse a build for another environment's MPI.
PATH=$bin:$PATH "$python" -P -m pip install --disable-pip-version-check --no-cache-dir \
    --no-build-isolation --no-deps --force-reinstall --no-binary mgmetis mgmetis==0.1.1
ls "$site"/mgmetis/_cython/parmetis64*.so "$site"/mgmetis/_cython/parmetis.*.so
