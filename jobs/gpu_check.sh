#!/usr/bin/env bash
# The first thing to run on a node with a GPU: checks that everything works there, and how fast.
#     jobs/gpu_check.sh [PART...]
# PARTs, by default all of them in this order, each with its limit in seconds:
#     doctor       60   which tools are installed, and `hpcgnn doctor` on 1 rank and on 2: one kernel of
#                       each kind compared with the CPU's
#     kernels     150   the tests of all kernels against the CPU's
#     runs        270   whole runs and every layer on ranks that share the GPU, messages by CUDA IPC
#     epoch       120   `hpcgnn bench epoch` of four models
#     speed       150   `hpcgnn bench kernels` in float32 and bfloat16
#     profile      90   what the GPU and the host do in an epoch of four models, by kernel
#     sanitizer   120   one kernel of each kind under compute-sanitizer, if installed
#     counters     60   memory and issue activity of kernels by Nsight Compute, if installed
# So a quarter of an hour is about enough: BUDGET=560 jobs/gpu_check.sh doctor kernels runs epoch
# checks what matters most in ten minutes. One more part runs only if it is named:
#     large       240   like epoch, on a million nodes
# Ends with a table, and status 1 if a part failed; the other parts run all the same. OUT
# (runs/gpu_check) holds the output of each so far, and table.txt. BUDGET is the seconds of all
# parts together, LIMIT that of every part instead of these. PYTHON, WORKERS (tests at a time, 8),
# WIDTHS (of speed: "64 128 256 512"), NODES and EDGES (of speed), EPOCH_NODES, LARGE_NODES and
# DEVICE (cuda) can be set too.
# BASE is another checkout of hpcgnn: speed, epoch and large measure it too, right after this one.
# Kernels and runs need the test environment. On a machine without a network, WHEELS is a folder of
# the wheels that are missing there (such as mpich): they are installed below OUT. Libraries that
# are not built yet are built, which takes minutes: better bring them.
# shellcheck disable=SC2329 # parts are called by their names
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
# shellcheck source=jobs/attended.sh
source jobs/attended.sh
check_numbers BUDGET LIMIT WORKERS NODES EDGES EPOCH_NODES LARGE_NODES

python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
PATH=$(cd "$(dirname "$python")" && pwd):$PATH
export PATH OMP_NUM_THREADS=1
# MPICH's mpiexec looks for a network card, and some machines have none.
export HYDRA_IFACE=${HYDRA_IFACE:-lo}
out=${OUT:-runs/gpu_check}
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    prefix=$(cd "$out" && pwd)/prefix
    "$python" -m pip install -q --no-index --no-deps --no-compile --ignore-installed \
        --prefix "$prefix" "$WHEELS"/*.whl
    export PATH="$prefix/bin:$PATH" LD_LIBRARY_PATH="$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    PYTHONPATH=$(echo "$prefix"/lib/python*/site-packages)${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi
# What is checked is this checkout, even where another one is installed.
[ ! -d src/hpcgnn ] || export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
[ ! -f setup.py ] || [ -n "$(find src -name 'libhpcgnn_cpu*.so')" ] ||
    "$python" setup.py -q build_ext --inplace
device=(--device "${DEVICE:-cuda}")

doctor() {
    local tool failed=0
    for tool in nvidia-smi nvcc compute-sanitizer ncu nsys; do
        printf '%-18s %s\n' "$tool" "$(type -P "$tool" || echo missing)"
    done
    ! command -v nvidia-smi >/dev/null ||
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.used --format=csv
    "$python" -m hpcgnn doctor || failed=1
    mpiexec -n 2 "$python" -m hpcgnn doctor || failed=1
    return "$failed"
}

# gpu_tests PATH...: several at a time if pytest can, with the seconds of each.
gpu_tests() {
    if [ ! -d tests ]; then
        echo "skipped: tests come with a clone of hpcgnn, not with an installed package"
        return
    fi
    local options=(-m gpu -q -rs --durations=0 --durations-min=1)
    ! "$python" -c 'import xdist' 2>/dev/null || options+=(-n "${WORKERS:-8}")
    "$python" -m pytest "${options[@]}" "$@"
}

kernels() { gpu_tests tests/kernels/test_cuda_device.py; }

runs() {
    gpu_tests tests/train/test_gpu.py tests/comm/transport/test_ipc.py \
        tests/comm/test_device_sums.py
}

sanitizer() {
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: no compute-sanitizer, which comes with the CUDA toolkit"
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -c \
            'import torch; from hpcgnn.kernels import selftest; \
             assert not selftest.differences(torch.device("cuda", 0))'
    done
}

# measured NAME ARGUMENT...: `hpcgnn bench ARGUMENT...`, here and in BASE.
measured() {
    local name=$1
    shift
    "$python" -m hpcgnn bench "$@" "${device[@]}" --no-peers --force --json "$out/$name.json"
    [ -z "${BASE:-}" ] ||
        PYTHONPATH=$BASE/src${PYTHONPATH:+:$PYTHONPATH} "$python" -m hpcgnn bench "$@" "${device[@]}" \
            --no-peers --force --json "$out/$name-base.json"
}

speed() {
    local width
    for width in ${WIDTHS:-64 128 256 512}; do
        measured "speed-$width" kernels --nodes "${NODES:-1000000}" --edges "${EDGES:-30000000}" \
            --width "$width" --heads 4 --channels $((width / 4))
    done
}

# epochs PART NODES: of a generated graph, which is kept.
epochs() {
    local model
    for model in gcn sage gat gatv2; do
        measured "$1-$model" epoch --ranks 1x1 --turns 1 --nodes "$2" --degree 31 \
            --model "$model" --work "$out"
    done
}

epoch() { epochs epoch "${EPOCH_NODES:-100000}"; }

large() { epochs large "${LARGE_NODES:-1000000}"; }

profile() {
    local graph=$out/profile.h5 part=$out/profile.p1.h5 model
    "$python" -m hpcgnn generate sbm "$graph" --nodes "${EPOCH_NODES:-100000}" --degree 31 --force
    "$python" -m hpcgnn partition "$graph" -o "$part" --method block --force >/dev/null
    for model in gcn sage gat gatv2; do
        rm -rf "$out/profile-$model"
        "$python" -m hpcgnn train "$part" "${device[@]}" --model "$model" --epochs 8 --eval-every 8 \
            --checkpoint-every 0 --profile 4 --run-dir "$out/profile-$model" --quiet
        echo "$model:"
        "$python" jobs/gpu_profile.py "$out/profile-$model/profile/rank-00000.json" 4
    done
}

counters() {
    if ! type -P ncu >/dev/null; then
        echo "skipped: no ncu, which comes with the CUDA toolkit"
        return
    fi
    local metrics=dram__throughput.avg.pct_of_peak_sustained_elapsed
    metrics+=,sm__inst_issued.avg.pct_of_peak_sustained_active,gpu__time_duration.sum
    ncu --metrics "$metrics" --kernel-name 'regex:^(spmm|gat|maximum|head_dots)' \
        --launch-count 40 --csv --log-file "$out/ncu.csv" \
        "$python" -m hpcgnn bench kernels "${device[@]}" --no-peers --repeat 1 \
        --nodes "${NODES:-1000000}" --edges "${EDGES:-30000000}" --width 128 --heads 4 --channels 32
    cat "$out/ncu.csv"
}

declare -A limits=(
    [doctor]=60 [kernels]=150 [runs]=270 [epoch]=120 [speed]=150 [profile]=90 [sanitizer]=120
    [counters]=60 [large]=240
)
all="doctor kernels runs epoch speed profile sanitizer counters"
parts=("$@")
[ $# -gt 0 ] || read -ra parts <<<"$all"
for part in "${parts[@]}"; do
    if [ -z "${limits[$part]:-}" ]; then
        echo "gpu_check.sh: $part: no such part; there are $all large" >&2
        exit 2
    fi
done

failed=0
: >"$out/table.txt"
export -f doctor gpu_tests kernels runs sanitizer measured speed epochs epoch large profile counters
export python out
for part in "${parts[@]}"; do
    limit=${LIMIT:-${limits[$part]}} began=$SECONDS status=0
    rm -f "$out/$part"-*.json
    left=$((${BUDGET:-100000} - SECONDS))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 1 ]; then
        printf '%-10s %-12s\n' "$part" "no time left" >>"$out/table.txt"
        failed=1
        continue
    fi
    echo "== $part (at most $limit s)"
    # The limit ends a part with all processes that it has started.
    exec 3> >(tee -i "$out/$part.log")
    tee=$!
    attended timeout --kill-after=10 "$limit" bash -euo pipefail -c \
        "device=(${device[*]}); $part" >&3 2>&1 3>&- || status=$?
    exec 3>&-
    wait "$tee" || true
    [ -z "$passed" ] || exit "$status"
    said=ok
    ! grep -q '^skipped: ' "$out/$part.log" || said=skipped
    [ "$status" -eq 0 ] || said="FAILED ($status)" failed=1
    [ "$status" -ne 124 ] || said="out of time"
    printf '%-10s %-12s %4d s  %s\n' "$part" "$said" $((SECONDS - began)) \
        "$(grep -E '^[=0-9].*(passed|failed|error)' "$out/$part.log" | tail -n 1 || true)" \
        >>"$out/table.txt"
done

echo
"$python" jobs/gpu_check.py "$out" "${parts[@]}" || failed=1
cat "$out/table.txt"
exit "$failed"
