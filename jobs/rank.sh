#!/usr/bin/env bash
# One rank of a Slurm step: runs "$@" with this rank's GPU, if the profile assigns GPUs.
set -euo pipefail

# USR1 asks training to stop. If it comes before training handles it, it must not kill the rank.
trap '' USR1

if [ -n "${HPCGNN_GPUS_PER_NODE:-}" ]; then
    # On Perlmutter the last GPU is nearest to the first cores.
    export CUDA_VISIBLE_DEVICES=$((HPCGNN_GPUS_PER_NODE - 1 - SLURM_LOCALID % HPCGNN_GPUS_PER_NODE))
fi
exec "$@"
