#!/usr/bin/env bash
# Style, types, scripts, then the tests: all of them on one rank, those marked mpi on the numbers of
# ranks given. `make test` calls it with the environment's programs first in PATH.
# --quick: style, types, quick tests not marked mpi on one rank, and on two ranks the quick tests of
# the packages that send messages, and the golden losses.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
unset OMP_NUM_THREADS  # nproc would answer with it
cores=$(($(nproc) < 4 ? $(nproc) : 4))
export OMP_NUM_THREADS=1
# Hundreds of processes import the bytecode that the first one wrote, even if the shell forbids it.
unset PYTHONDONTWRITEBYTECODE

failed=()
# check NAME COMMAND...: runs COMMAND; after a failure, which is recorded, the next check runs.
check() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - began)) s"
}

# Ranks are forks of a process that has loaded PyTorch, which takes each of them seconds: see
# tests/forked.py. A torch with CUDA does without.
python=(python)
load_once() {
    [[ $(python -c 'from importlib.metadata import version as v; print(v("torch"))') = *+cpu ]] || return 0
    local socket=$logs/forks
    coproc FORKS { exec python -m tests.forked "$socket" pytest; }
    read -r _ <&"${FORKS[0]}"
    python=(python -IS tests/forked.py "$socket")
}

# on_ranks RANKS [PATH OR OPTION...]: only rank 0 prints its report; the traceback of a failing rank
# is printed on its stderr. Ranks share few cores, so each number of ranks runs only tests that need
# it: with 3, a rank sends to one rank and receives from another (so most layers are tested there
# and on one rank, not on 2); with 4, two ranks exchange rows with each other in the
# second step; 7 ranks divide few graphs evenly, and some hold nothing; with 8, many ranks wait for a
# late one. Where ranks share cores, a rank that waits inside MPI (in ParMETIS, for example) sleeps,
# instead of spinning as MPICH does by default.
on_ranks() {
    local ranks=$1 folders=(tests
        --ignore=tests/nn/test_{against_pyg,message_layers,buckets,degrees,dropout,gradients,norm}.py)
    shift
    [ "$ranks" -le 2 ] || folders=(tests/{comm,storage,graph,sar,nn}
        --ignore=tests/{storage/importers,graph/test_partitioned.py}
        --ignore=tests/nn/test_{precision,arguments,host_rows}.py
        tests/train/test_{any_settings,golden_losses}.py
        tests/train/test_loop.py::test_resumed_run_is_bit_identical)
    [ "$ranks" -le 3 ] || folders=(tests/sar tests/comm/test_ring.py
        --ignore=tests/sar/test_{autograd,hubs,saved_tensors}.py)
    [ "$ranks" -le 4 ] || folders=(tests/partition --ignore=tests/partition/test_simple.py
        tests/comm/test_{agreement,communicator,ring}.py)
    [ "$ranks" -le 7 ] || folders=(tests/comm/test_unfinished.py -k late_rank)
    [[ ${1:-} != tests/* ]] || folders=()
    # shellcheck disable=SC2016
    MPIR_CVAR_CH4_PROGRESS_THROTTLE=$((ranks > cores)) \
        MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT=20 mpiexec -n "$ranks" sh -c \
        '[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}" = 0 ] || exec >/dev/null; exec "$@"' - \
        "${python[@]}" -m pytest "${folders[@]}" -m mpi -q "$@"
}

# each RANKS...: `on_ranks` with one number after the other.
each() {
    local status=0 ranks
    for ranks in "$@"; do
        echo "== $ranks ranks"
        on_ranks "$ranks" || status=1
    done
    return "$status"
}

# show PROCESS LOG: waits for the process, prints its log and returns its status.
show() {
    local status=0
    wait "$1" || status=$?
    cat "$2"
    return "$status"
}

# beside LOG COMMAND...: starts COMMAND in the background; `show` waits for it.
beside() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 &
}

logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$logs"' EXIT
by_file=(--dist loadfile --no-loadscope-reorder)
beside "$logs/types" mypy
types=$!
NO_MKDOCS_2_WARNING=1 beside "$logs/docs" mkdocs build -q
docs=$!
check style ruff check .

quick() {
    load_once
    beside "$logs/ranks" on_ranks 2 tests/{comm,graph,sar,nn} \
        tests/train/test_golden_losses.py --quick
    local ranks=$!
    check "quick tests, 1 rank" \
        python -m pytest tests -m "not mpi" --quick -q -n "$cores" "${by_file[@]}"
    check types show "$types" "$logs/types"
    check docs show "$docs" "$logs/docs"
    check "quick tests, 2 ranks" show "$ranks" "$logs/ranks"
}

# full RANKS...: all tests.
full() {
    # Without Slurm its tests are skipped, with a message. APT=no installs nothing.
    if [ "${APT:-yes}" = yes ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
        ! PATH=$PATH:/usr/sbin command -v slurmd >/dev/null; then
        echo "== env/debian.sh slurm"
        env/debian.sh slurm >/dev/null || echo "== apt-get found no Slurm"
    fi
    # These tests mostly wait.
    beside "$logs/slurm" python -m pytest tests/slurm -q
    local slurm=$!
    check scripts shellcheck env/*.sh jobs/*.sh jobs/*.sbatch jobs/profiles/*.sh .ci/run
    # One more worker than cores, since some tests sleep. `make test-cuda` compiles for GPUs.
    check "tests, 1 rank" python -m pytest tests -q --ignore=tests/slurm --durations=12 \
        --deselect tests/kernels/test_cuda_compile.py::test_compiles_without_warnings_and_large_spills \
        -n "$((cores < 4 ? cores + 1 : 4))" "${by_file[@]}"
    check types show "$types" "$logs/types"
    check docs show "$docs" "$logs/docs"
    check "tests, Slurm" show "$slurm" "$logs/slurm"
    load_once
    # Ranks that wait for each other leave part of the cores to another job.
    beside "$logs/ranks" each "${@:2}" 8
    local others=$!
    check "tests, $1 ranks" on_ranks "$1"
    check "tests, ${*:2} 8 ranks" show "$others" "$logs/ranks"
}

if [ "${1:-}" = --quick ]; then quick; else full "$@"; fi
if [ ${#failed[@]} -gt 0 ]; then
    printf '== FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "== all passed in $SECONDS s"
