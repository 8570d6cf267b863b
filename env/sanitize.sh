#!/usr/bin/env bash
# The tests of the C++ kernels under AddressSanitizer and UBSan, for every instruction set that this
# processor has. The library is built for it in a temporary folder, beside a copy of the package.
set -euo pipefail
cd "$(dirname "$0")/.."

asan=$("${CXX:-g++}" -print-file-name=libasan.so)
if [ ! -e "$asan" ]; then
    echo "env/sanitize.sh: skipped, the compiler has no AddressSanitizer"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r src/hpcgnn "$folder/hpcgnn"
rm -f "$folder/hpcgnn/kernels/libhpcgnn_cpu.so"
HPCGNN_SANITIZE=1 python setup.py -q build_ext --force --build-lib "$folder" --build-temp "$folder/build"

# Python itself leaks; leaks of the kernels would show as growth elsewhere.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
export PYTHONPATH=$folder PYTHONDONTWRITEBYTECODE=1
sets=$(python -c 'from hpcgnn.kernels.cpu.library import supported; print(*supported())')
running=()
for isa in $sets; do
    HPCGNN_ISA=$isa LD_PRELOAD=$asan python -m pytest -q -x -p no:cacheprovider \
        tests/kernels/test_{spmm,attention,gatv2,dropout,long_rows}.py >"$folder/$isa.log" 2>&1 &
    running+=("$!")
done
status=0
for isa in $sets; do
    wait "${running[0]}" || status=$?
    running=("${running[@]:1}")
    echo "$isa: $(tail -n 1 "$folder/$isa.log")"
    [ "$status" = 0 ] || { cat "$folder/$isa.log"; exit "$status"; }
done
