# shellcheck shell=bash
# shellcheck disable=SC2034  # read by launch.sh and pipeline.sh
# A plain Slurm cluster of CPUs. Ranks and cores are sbatch's own options:
#     sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=8 jobs/train.sbatch ...
# HPCGNN_SRUN_MPI: pmi2 for MPICH (the default of `make setup`), pmix for Open MPI.
export HPCGNN_PROFILE=plain
HPCGNN_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-1}
HPCGNN_VENV=${HPCGNN_VENV:-${VIRTUAL_ENV:-$HPCGNN_HOME/.venv}}
SRUN_OPTIONS=(--mpi="${HPCGNN_SRUN_MPI:-pmi2}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# Cache of compiled GPU kernels, if there are GPUs: not in home if the site has a faster place.
[ -z "${SCRATCH:-}" ] || export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$SCRATCH/hpcgnn-cupy}
