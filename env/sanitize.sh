#!/usr/bin/env bash
# The tests of the C++ code under AddressSanitizer and UBSan, for every instruction set that this
# processor has. The library is built for it in a separate folder, with a copy of the package;
# SANITIZED (default build/sanitized) keeps it, so that only changed sources are compiled again.
set -euo pipefail
unset CDPATH
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
rm -f "$folder"/hpcgnn/{kernels/cpu/libhpcgnn_cpu,partition/layout/libhpcgnn_layout,storage/libhpcgnn_storage}.so
HPCGNN_SANITIZE=$(python -c 'from hpcgnn.kernels.cpu.library import supported; print(*supported())')
export HPCGNN_SANITIZE
python setup.py -q build_ext --build-lib "$folder" --build-temp "$folder/objects"

# Python itself leaks; leaks of the kernels would show as growth in other tests.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
export PYTHONPATH=$folder PYTHONDONTWRITEBYTECODE=1
# Every function, every width of sums, and one shape of attention for each way to divide heads into
# tiles; further cases of the tests take the same paths.
cases='adds_weighted or pieces or empty or tiny or one_row or maximum or transpose or range'
cases+=' or float64 or dots-1 or dots-5000 or dropout or values_and or length or not_a_number or infinity'
for shape in 1-1 1-128 1-300 2-8 3-47 4-17 4-33 4-40 4-257 5-16 8-32 9-3 12-6 17-4; do
    cases+=" or every_shape and $shape-dtype"
done

# test_isa ISA: prints its report at once, since two run at a time.
test_isa() {
    local report status=0
    report=$(HPCGNN_ISA=$1 LD_PRELOAD=$asan python -m pytest -q -x -p no:cacheprovider \
        tests/kernels/test_{sanitizer,spmm,attention,heads,dense,dropout,long_rows}.py \
        tests/partition/layout/test_{clusters,cover}.py tests/storage/test_fingerprint.py \
        tests/storage/importers/test_ends.py \
        -k "(sanitizer or clusters or cover or fingerprint or test_ends or $cases) and not unbiased and not partition_of" 2>&1) || status=$?
    printf '== %s\n%s\n' "$1" "$report"
    return "$status"
}
export -f test_isa
export asan cases
tr ' ' '\n' <<<"$HPCGNN_SANITIZE" | xargs -P 2 -I ISA bash -c 'test_isa ISA'
