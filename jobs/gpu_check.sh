#!/usr/bin/env bash
# What to run first on a node with a GPU: whether everything works there, and how fast it is.
#     jobs/gpu_check.sh [PART...]
# PARTs, all of them in this order unless some are named, each ended after so many seconds:
#     doctor       60   `hpcgnn doctor` on 1 rank and on 2: one kernel of each kind beside the CPU's
#     kernels     150   the tests of all kernels beside the CPU's
#     runs        270   whole runs and every layer on ranks that share the GPU, messages by CUDA IPC
#     sanitizer   150   one kernel of each kind under compute-sanitizer, where there is one
#     speed       150   `hpcgnn bench kernels` in float32 and bfloat16
#     epoch       120   `hpcgnn bench epoch` of three models
# So a quarter of an hour is enough. Installs nothing: kernels and runs need the test environment.
# Ends with a table and status 1 where a part failed; OUT (runs/gpu_check) holds what each wrote.
# LIMIT is the seconds of every part in place of these. PYTHON, WORKERS (tests at a time, 8), WIDTHS
# (of speed: "64 128 256 512"), NODES and EDGES (of speed), EPOCH_NODES, DEVICE (cuda) as you like.
# shellcheck disable=SC2329 # parts are called by their names
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
PATH=$(cd "$(dirname "$python")" && pwd):$PATH
export PATH OMP_NUM_THREADS=1
"$python" -c 'import hpcgnn' 2>/dev/null || export PYTHONPATH=$PWD/src
out=${OUT:-runs/gpu_check}
mkdir -p "$out"
device=(--device "${DEVICE:-cuda}")

doctor() {
    "$python" -m hpcgnn doctor
    mpiexec -n 2 "$python" -m hpcgnn doctor
}

# gpu_tests PATH...: several at a time where pytest can, with the seconds of each.
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

runs() { gpu_tests tests/train/test_gpu.py tests/comm/transport/test_ipc.py; }

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

speed() {
    local width
    for width in ${WIDTHS:-64 128 256 512}; do
        "$python" -m hpcgnn bench kernels "${device[@]}" --no-peers --force \
            --nodes "${NODES:-1000000}" --edges "${EDGES:-30000000}" \
            --width "$width" --heads 4 --channels $((width / 4)) --json "$out/speed-$width.json"
    done
}

epoch() {
    local model
    for model in gcn sage gat; do
        "$python" -m hpcgnn bench epoch "${device[@]}" --no-peers --force --ranks 1x1 --turns 1 \
            --nodes "${EPOCH_NODES:-100000}" --degree 31 --model "$model" --work "$out" \
            --json "$out/epoch-$model.json"
    done
}

declare -A limits=(
    [doctor]=60 [kernels]=150 [runs]=270 [sanitizer]=150 [speed]=150 [epoch]=120
)
parts=("$@")
[ $# -gt 0 ] || parts=(doctor kernels runs sanitizer speed epoch)
for part in "${parts[@]}"; do
    if [ -z "${limits[$part]:-}" ]; then
        echo "gpu_check.sh: $part: no such part; there are doctor kernels runs sanitizer speed epoch" >&2
        exit 2
    fi
done

table=() failed=0
export -f doctor gpu_tests kernels runs sanitizer speed epoch
export python out
for part in "${parts[@]}"; do
    limit=${LIMIT:-${limits[$part]}} began=$SECONDS status=0
    echo "== $part (at most $limit s)"
    # Its limit ends a part with all that it has started.
    timeout --kill-after=10 "$limit" bash -euo pipefail -c \
        "device=(${device[*]}); $part" 2>&1 | tee "$out/$part.log" || status=$?
    said=ok
    [ "$status" -eq 0 ] || said="FAILED ($status)" failed=1
    [ "$status" -ne 124 ] || said="out of time"
    ! grep -q '^skipped: ' "$out/$part.log" || said=skipped
    table+=("$(printf '%-10s %-12s %4d s  %s' "$part" "$said" $((SECONDS - began)) \
        "$(grep -E '^[=0-9].*(passed|failed|error)' "$out/$part.log" | tail -n 1 || true)")")
done

echo
"$python" jobs/gpu_check.py "$out" "${parts[@]}"
printf '%s\n' "${table[@]}"
exit "$failed"
