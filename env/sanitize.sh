#!/usr/bin/env bash
# The tests of the C++ kernels under AddressSanitizer and UBSan, for every instruction set that this
# processor has. The library is built for it in a folder of its own, beside a copy of the package;
# SANITIZED (default build/sanitized) keeps it, so that only changed sources are compiled again.
set -euo pipefail
cd "$(dirname "$0")/.."

asan=$("${CXX:-g++}" -print-file-name=libasan.so)
if [ ! -e "$asan" ]; then
    echo "env/sanitize.sh: skipped, the compiler has no AddressSanitizer"
    exit 0
fi
folder=$(realpath -m "${SANITIZED:-build/sanitized}")
mkdir -p "$folder"
rm -rf "$folder/hpcgnn"
cp -r src/hpcgnn "$folder/hpcgnn"
rm -f "$folder/hpcgnn/kernels/cpu/libhpcgnn_cpu.so"
HPCGNN_SANITIZE=1 python setup.py -q build_ext --build-lib "$folder" --build-temp "$folder/objects"

# Python itself leaks; leaks of the kernels would show as growth elsewhere. One of each kind of
# shape: what else the tests try takes the same paths.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
export PYTHONPATH=$folder PYTHONDONTWRITEBYTECODE=1
shapes='1-1-dtype or 3-8-dtype or 4-17-dtype or 4-40-dtype or 4-257-dtype or 12-6-dtype'
others='pieces or empty or threads or dropout or long or gradient or transpose or range or dots'
sets=$(python -c 'from hpcgnn.kernels.cpu.library import supported; print(*supported())')
for isa in $sets; do
    echo "== $isa"
    HPCGNN_ISA=$isa LD_PRELOAD=$asan python -m pytest -q -x -p no:cacheprovider \
        tests/kernels/test_{spmm,attention,dropout,long_rows}.py \
        -k "($shapes or $others) and not forty_million and not unbiased"
done
