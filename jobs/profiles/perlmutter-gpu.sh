# shellcheck shell=bash
# shellcheck disable=SC2034  # read by launch.sh and pipeline.sh
# Perlmutter's GPU nodes: four A100s, one rank each. Source it before sbatch, which then needs only
#     sbatch --account=mXXXX --nodes=2 jobs/train.sbatch ...
HPCGNN_HOME=${HPCGNN_HOME:-$PWD}
export HPCGNN_HOME HPCGNN_PROFILE=perlmutter-gpu
export SBATCH_CONSTRAINT=gpu SBATCH_QOS=${SBATCH_QOS:-regular} SBATCH_GPUS_PER_NODE=4
HPCGNN_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-4}
HPCGNN_VENV=${HPCGNN_VENV:-${VIRTUAL_ENV:-$HPCGNN_HOME/.venv-perlmutter-gpu}}

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # shellcheck source=env/perlmutter_modules.sh
    source "$HPCGNN_HOME/env/perlmutter_modules.sh" gpu
    # Any other GPU binding hides the ranks' GPUs from each other and breaks CUDA IPC.
    SRUN_OPTIONS=(--mpi=cray_shasta --ntasks-per-node="$HPCGNN_RANKS_PER_NODE"
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-32}" --cpu-bind=cores
        --gpus-per-node=4 --gpu-bind=none)
    export HPCGNN_GPUS_PER_NODE=4
    # Cache of compiled GPU kernels: home is slow when all nodes read it, and /tmp is shared by all users.
    export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-${SCRATCH:-$HOME}/hpcgnn-cupy}
    export MPICH_GPU_SUPPORT_ENABLED=1 MPICH_OFI_NIC_POLICY=GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-16} OMP_PLACES=cores OMP_PROC_BIND=close
fi
