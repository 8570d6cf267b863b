# shellcheck shell=bash
# Sourced by the job scripts. Reads the profile of the machine and defines
#     serial VERB ARGS...     one process
#     launch VERB ARGS...     all ranks: srun inside a job, mpiexec (HPCGNN_RANKS, 2) outside
#     on_ranks COMMAND...     the same for any command
#     requeue_if_stopped DIR  after training: back into the queue if it stopped before its last epoch
# Variables: HPCGNN_HOME (folder of jobs/; the one sbatch was called in), HPCGNN_PROFILE (a file in
# jobs/profiles; plain), HPCGNN_VENV (the Python environment; the one active at sbatch, or the profile's).
set -euo pipefail
unset CDPATH  # else `cd` may go elsewhere, and prints where

HPCGNN_HOME=${HPCGNN_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
HPCGNN_PROFILE=${HPCGNN_PROFILE:-plain}
HPCGNN_RANKS=${HPCGNN_RANKS:-2}
export HPCGNN_HOME HPCGNN_PROFILE PYTHONUNBUFFERED=1

case $HPCGNN_RANKS in
    0* | *[!0-9]* | ??????*)
        printf 'launch.sh: HPCGNN_RANKS must be a number of ranks: %q\n' "$HPCGNN_RANKS" >&2
        exit 2
        ;;
esac

if [ ! -f "$HPCGNN_HOME/jobs/profiles/$HPCGNN_PROFILE.sh" ]; then
    echo "launch.sh: $HPCGNN_HOME/jobs/profiles/$HPCGNN_PROFILE.sh: no such file; call sbatch in" \
        "hpcgnn's folder or set HPCGNN_HOME, and set HPCGNN_PROFILE to a file of jobs/profiles" >&2
    exit 2
fi
SRUN_OPTIONS=()
if [ -z "${HPCGNN_VENV:-}${VIRTUAL_ENV:-}" ] && [ -x "${CONDA_PREFIX:-}/bin/hpcgnn" ]; then
    HPCGNN_VENV=$CONDA_PREFIX
fi
# shellcheck source=jobs/profiles/plain.sh
source "$HPCGNN_HOME/jobs/profiles/$HPCGNN_PROFILE.sh"

if [ ! -x "$HPCGNN_VENV/bin/python" ]; then
    echo "launch.sh: $HPCGNN_VENV/bin/python: no such file; run \`make setup\` (on Perlmutter" \
        "env/perlmutter.sh), or activate hpcgnn's environment before sbatch, or set HPCGNN_VENV" >&2
    exit 2
fi
HPCGNN_VENV=$(cd "$HPCGNN_VENV" && pwd)

# absolute NAME...: leaves only absolute folders in these lists; an empty entry means the current one.
absolute() {
    local name entry kept
    for name in "$@"; do
        kept=
        while IFS= read -r -d : entry; do
            [[ $entry != /* ]] || kept+=${kept:+:}$entry
        done <<<"${!name-}:"
        unset "$name"
        [ -z "$kept" ] || export "$name=$kept"
    done
}
absolute PATH LD_LIBRARY_PATH PYTHONPATH
export PATH="$HPCGNN_VENV/bin:$PATH" PYTHONSAFEPATH=1

# shellcheck source=jobs/attended.sh
source "$HPCGNN_HOME/jobs/attended.sh"
check_numbers HPCGNN_GPUS_PER_NODE

# -P: no code of the folder the job was submitted in.
serial() { attended python -P -m hpcgnn "$@"; }

# note WORD...: a line of the log. A full disk ends neither a trap nor the job.
note() { echo "$(date '+%F %T') $*" 2>/dev/null || true; }

# The name of this job. The id of one task of an array is that of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
job=${job:-${SLURM_JOB_ID:-}}

forward() {
    woken=yes
    [ -n "$step" ] || return 0
    note "SIG$1: the ranks are told to write a checkpoint and stop"
    # Slurm signals the step's processes itself; srun also forwards a signal, without slurmctld.
    scancel --signal=USR1 "$job" 2>/dev/null || kill -USR1 "$step" || true
}

launch() { on_ranks python -P -m hpcgnn "$@"; }

on_ranks() {
    local status=0
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        attended mpiexec -n "$HPCGNN_RANKS" "$@"
        return
    fi
    woken=
    trap 'forward USR1' USR1
    trap 'forward TERM' TERM
    trap 'pass TERM' INT HUP  # in a shell of salloc
    # In the background: bash runs a trap only between commands or while it waits.
    srun --kill-on-bad-exit=1 "${SRUN_OPTIONS[@]}" "$HPCGNN_HOME/jobs/rank.sh" "$@" &
    step=$!
    wait_for_step || status=$?
    trap - USR1 TERM INT HUP
    return "$status"
}

# Training that stopped early leaves the file REQUEUE in its run directory. A job that Slurm itself
# is ending (scancel, preemption, a lost node) is no longer RUNNING and is left to Slurm.
requeue_if_stopped() {
    [ -n "${SLURM_JOB_ID:-}" ] && [ -e "$1/REQUEUE" ] || return 0
    local state
    state=$(squeue --noheader --jobs="$job" --format=%T) || state=unknown
    if [ "$state" = RUNNING ]; then
        note "job $job goes back into the queue and will resume from $1"
        scontrol requeue "$job" && return 0
    fi
    echo "$(date '+%F %T') training stopped before its last epoch (job state $state);" \
        "the same sbatch command resumes from $1" >&2
    return 1
}
