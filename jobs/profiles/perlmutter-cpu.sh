# shellcheck shell=bash
# shellcheck disable=SC2034  # read by launch.sh and pipeline.sh
# Perlmutter's CPU nodes: 128 cores in 8 memory domains, one rank each (sbatch --ntasks-per-node
# changes it). Source it before sbatch, which then needs only
#     sbatch --account=mXXXX --nodes=2 jobs/train.sbatch ...
HPCGNN_HOME=${HPCGNN_HOME:-$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]:-jobs/profiles/any}")/../.." && pwd)}
export HPCGNN_HOME HPCGNN_PROFILE=perlmutter-cpu
export SBATCH_CONSTRAINT=cpu SBATCH_QOS=${SBATCH_QOS:-regular}
unset SBATCH_GPUS_PER_NODE  # of the other profile
HPCGNN_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-8}
HPCGNN_VENV=${HPCGNN_VENV:-${VIRTUAL_ENV:-$HPCGNN_HOME/.venv-perlmutter-cpu}}

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # shellcheck source=jobs/perlmutter_modules.sh
    source "$HPCGNN_HOME/jobs/perlmutter_modules.sh" cpu
    # Two CPUs of Slurm are a core; the ranks of a node share its 128 cores.
    cpus=${SLURM_CPUS_PER_TASK:-$((2 * (128 / HPCGNN_RANKS_PER_NODE)))}
    SRUN_OPTIONS=(--mpi=cray_shasta --ntasks-per-node="$HPCGNN_RANKS_PER_NODE"
        --cpus-per-task="$cpus" --cpu-bind=cores)
    # Without GPUs, Cray MPICH's GPU support ends the process.
    export MPICH_GPU_SUPPORT_ENABLED=0
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cpus + 1) / 2))} OMP_PLACES=cores OMP_PROC_BIND=close
fi
