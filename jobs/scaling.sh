#!/usr/bin/env bash
# The figure in the README: memory of each rank and the loss curve of the same training on 1, 2 and
# 4 ranks of this machine. Runs go to runs/scaling; finished ones are kept. Takes minutes.
#     jobs/scaling.sh [FIGURE.svg]
# NODES, DEGREE, HIDDEN, EPOCHS change the size, RANKS the numbers of ranks.
set -e
: "${HPCGNN_HOME:=$(cd "$(dirname "$0")/.." && pwd)}"
# shellcheck source=jobs/launch.sh
source "$HPCGNN_HOME/jobs/launch.sh"

runs=runs/scaling
graph=$runs/graph.h5
mkdir -p "$runs"
[ -e "$graph" ] || serial generate sbm "$graph" --nodes "${NODES:-50000}" --degree "${DEGREE:-50}" \
    --features 128 --classes 10 --homophily 0.8 --seed 1
for HPCGNN_RANKS in ${RANKS:-1 2 4}; do
    part=$runs/graph.p$HPCGNN_RANKS.h5
    run=$runs/p$HPCGNN_RANKS
    [ -e "$part" ] || launch partition "$graph" --method parmetis -o "$part"
    [ ! -e "$run/log" ] || continue
    launch train "$part" --model sage --layers 3 --hidden "${HIDDEN:-256}" --dropout 0.3 \
        --norm layer --epochs "${EPOCHS:-16}" --halo-buffer 16MiB --run-dir "$run" | tee "$run.log"
    mv "$run.log" "$run/log"
done
python "$HPCGNN_HOME/docs/scaling.py" "$runs" "${1:-$HPCGNN_HOME/docs/scaling.svg}"
