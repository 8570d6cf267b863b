# shellcheck shell=bash
# shellcheck disable=SC2034  # read by launch.sh and pipeline.sh
# Perlmutter's CPU nodes: 128 cores in 8 memory domains, one rank each. Source it before sbatch,
# which then needs only
#     sbatch --account=mXXXX --nodes=2 jobs/train.sbatch ...
HPCGNN_HOME=${HPCGNN_HOME:-$PWD}
export HPCGNN_HOME HPCGNN_PROFILE=perlmutter-cpu
export SBATCH_CONSTRAINT=cpu SBATCH_QOS=${SBATCH_QOS:-regular}
HPCGNN_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-8}
HPCGNN_VENV=${HPCGNN_VENV:-${VIRTUAL_ENV:-$HPCGNN_HOME/.venv-perlmutter-cpu}}

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # shellcheck source=env/perlmutter_modules.sh
    source "$HPCGNN_HOME/env/perlmutter_modules.sh" cpu
    SRUN_OPTIONS=(--mpi=cray_shasta --ntasks-per-node="$HPCGNN_RANKS_PER_NODE"
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-32}" --cpu-bind=cores)
    # Without GPUs, Cray MPICH's GPU support ends the process.
    export MPICH_GPU_SUPPORT_ENABLED=0
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-16} OMP_PLACES=cores OMP_PROC_BIND=close
fi
