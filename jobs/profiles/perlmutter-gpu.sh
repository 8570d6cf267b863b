# shellcheck shell=bash
# shellcheck disable=SC2034  # read by launch.sh and pipeline.sh
# Perlmutter's GPU nodes: four A100s, one rank each (sbatch --ntasks-per-node changes it). Source
# it before sbatch, which then needs only
#     sbatch --account=mXXXX --nodes=2 jobs/train.sbatch ...
HPCGNN_HOME=${HPCGNN_HOME:-$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]:-jobs/profiles/any}")/../.." && pwd)}
export HPCGNN_HOME HPCGNN_PROFILE=perlmutter-gpu
export SBATCH_CONSTRAINT=gpu SBATCH_QOS=${SBATCH_QOS:-regular} SBATCH_GPUS_PER_NODE=4
HPCGNN_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-4}
HPCGNN_VENV=${HPCGNN_VENV:-${VIRTUAL_ENV:-$HPCGNN_HOME/.venv-perlmutter-gpu}}

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # shellcheck source=jobs/perlmutter_modules.sh
    source "$HPCGNN_HOME/jobs/perlmutter_modules.sh" gpu
    # Two CPUs of Slurm are a core; the ranks of a node share its 64 cores.
    cpus=${SLURM_CPUS_PER_TASK:-$((2 * (64 / HPCGNN_RANKS_PER_NODE)))}
    # Any other GPU binding hides the ranks' GPUs from each other and breaks CUDA IPC.
    SRUN_OPTIONS=(--mpi=cray_shasta --ntasks-per-node="$HPCGNN_RANKS_PER_NODE"
        --cpus-per-task="$cpus" --cpu-bind=cores
        --gpus-per-node=4 --gpu-bind=none)
    export HPCGNN_GPUS_PER_NODE=4
    # Cache of compiled GPU kernels: home is slow when all nodes read it, and /tmp is shared by all users.
    export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-${SCRATCH:-$HOME}/hpcgnn-cupy}
    export MPICH_GPU_SUPPORT_ENABLED=1 MPICH_OFI_NIC_POLICY=GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cpus + 1) / 2))} OMP_PLACES=cores OMP_PROC_BIND=close
fi
