#!/usr/bin/env bash
# Repeats the measurements of docs/performance.md and draws its figures. Takes an hour on two cores.
#     jobs/figures.sh [FOLDER [NAME...]]
# Results go to FOLDER (runs/bench), figures to FOLDER/figures; existing results are kept. NAMEs
# (a-sage, scale, ...) select measurements, so that they can be done in parts.
# PEERS is the Python of the peers' environment (.venv-peers/bin/python, see env/peers.sh), MEMORY the limit of a
# job; SMALLER=10 divides the nodes of all graphs by 10, for a test run of minutes.
set -e
unset CDPATH
: "${HPCGNN_HOME:=$(cd "$(dirname "$0")/.." && pwd)}"
# shellcheck source=jobs/launch.sh
source "$HPCGNN_HOME/jobs/launch.sh"
check_numbers SMALLER

out=${1:-runs/bench}
only=" ${*:2} "
mkdir -p "$out"

# measure NAME WHAT OPTIONS...
measure() {
    local name=$1
    shift
    [ "$only" = "  " ] || [[ $only == *" $name "* ]] || return 0
    [ -e "$out/$name.json" ] || serial bench "$@" --json "$out/$name.json"
}

# epoch NAME OPTIONS...: with peers.
epoch() {
    local name=$1
    shift
    measure "$name" epoch --peers "${PEERS:-.venv-peers/bin/python}" --work "$out" \
        --most-memory "${MEMORY:-12GiB}" "$@"
}

# graph NODES OPTIONS...
graph() { echo "--nodes $(($1 / ${SMALLER:-1})) ${*:2}"; }

a=$(graph 20000 --degree 31) b=$(graph 170000 --degree 15) c=$(graph 200000 --degree 100)
scaled="$(graph 50000 --degree 50) --classes 10 --hidden 256 --lr 0.003"
# shellcheck disable=SC2086
{
    epoch a-sage $a --model sage --hidden 256
    epoch a-gat-32 $a --model gat --hidden 128
    epoch a-gat-128 $a --model gat --hidden 512
    epoch b-sage $b --model sage --hidden 256
    epoch b-gat-32 $b --model gat --hidden 128
    epoch b-gat-128 $b --model gat --hidden 512
    epoch c-sage $c --model sage --hidden 256
    measure scale scale $scaled --ranks 1x1 2x1 4x1 --turns 1 --epochs 15 --work "$out" \
        --options "--norm layer --dropout 0.3 --halo-buffer 16MiB"
    epoch scaled $scaled --turns 1 --epochs 1
    measure ring ring
}
shopt -s nullglob
python "$HPCGNN_HOME/jobs/figures.py" "$out/figures" "$out"/{a,b,c}-*.json "$out"/scale*.json
