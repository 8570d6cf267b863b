#!/usr/bin/env bash
# Limits of one machine: a graph of NODES nodes (10 million) with DEGREE edges each (20) is
# generated, partitioned by each method, planned for, and trained on for 3 epochs; prints a table.
#     jobs/scale.sh [FOLDER]                        (default: runs/scale)
# HPCGNN_RANKS (4), METHODS (auto kaminpar streaming; none keeps existing parts), TRAIN (1; 0
# skips plan and epochs), FEATURES (64) and HIDDEN (64) change it. Peak memory is that of all
# processes of a stage together. Lines are appended to an existing table.
set -e
unset CDPATH
: "${HPCGNN_HOME:=$(cd "$(dirname "$0")/.." && pwd)}"
export HPCGNN_RANKS=${HPCGNN_RANKS:-4}
# shellcheck source=jobs/launch.sh
source "$HPCGNN_HOME/jobs/launch.sh"
check_numbers NODES FEATURES HIDDEN

folder=${1:-runs/scale}
nodes=${NODES:-10000000}
graph=$folder/sbm$nodes.h5
table=$folder/table.txt
mkdir -p "$folder"
ranks=(mpiexec -n "$HPCGNN_RANKS" hpcgnn)

# stage NAME COMMAND...: runs it; its output goes to FOLDER/NAME.log, a line to the table.
stage() {
    local name=$1 status=0
    shift
    attended python -P "$HPCGNN_HOME/jobs/peak.py" "$folder/$name.peak" "$@" \
        >"$folder/$name.log" 2>&1 || status=$?
    [ -z "$passed" ] || exit "$status"
    read -r seconds mebibytes _ <"$folder/$name.peak"
    if [ $status != 0 ]; then
        note="status $status: $(tail -n 1 "$folder/$name.log")"
    elif [[ $name == partition-* ]]; then
        note="volume $(awk '/communication volume/ { print $NF }' "$folder/$name.log") of random's"
    elif [[ $name == plan* ]]; then
        note=$(awk '/with imports/ { $1 = $1; print }' "$folder/$name.log")
    elif [[ $name == train* ]]; then
        note=$(awk '/^[0-9:]+ epoch/ { sub(/^[0-9:]+ /, ""); line = $0 } END { print line }' "$folder/$name.log")
    else
        note=
    fi
    printf '%-22s %8s s %9s MiB  %s\n' "$name" "$seconds" "$mebibytes" "$note" | tee -a "$table"
}

[ -e "$table" ] || echo "$nodes nodes, ${DEGREE:-20} edges each, $HPCGNN_RANKS ranks" | tee "$table"
[ -e "$graph" ] || stage generate hpcgnn generate sbm "$graph" --nodes "$nodes" \
    --degree "${DEGREE:-20}" --classes 16 --features "${FEATURES:-64}"
part=$folder/streaming.p$HPCGNN_RANKS.h5
for method in ${METHODS-auto kaminpar streaming}; do
    part=$folder/$method.p$HPCGNN_RANKS.h5
    stage "partition-$method" "${ranks[@]}" partition "$graph" --method "$method" -o "$part" --force
done
[ "${TRAIN:-1}" = 1 ] || exit 0
model=(--model sage --layers 3 --hidden "${HIDDEN:-64}")
stage plan hpcgnn plan "$part" "${model[@]}"
[ ! -f "$folder/run/config.json" ] || rm -rf "$folder/run"  # of an earlier call
stage train "${ranks[@]}" train "$part" "${model[@]}" --epochs 3 --run-dir "$folder/run"
