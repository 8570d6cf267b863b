#!/usr/bin/env bash
# Submits convert -> partition -> train -> predict, each to start after the previous one succeeded, and
# prints the job ids.
#
#     jobs/pipeline.sh [--nodes N] [--ranks-per-node R] [--convert OPTIONS] SOURCE NAME [TRAIN OPTIONS]
#
#     export SBATCH_ACCOUNT=mXXXX HPCGNN_PROFILE=perlmutter-gpu
#     jobs/pipeline.sh --nodes 2 --convert "--format edges" edges.txt.gz web --model sage --hidden 256
#
# SOURCE ending in .h5 is a graph already and is not converted. Results: graphs/NAME.h5,
# partitions/NAME.pP.h5 with P = N * R, runs/NAME/ with predictions.h5, one log per job. The same command
# given again replaces these files, and training continues from its last checkpoint.
set -euo pipefail
unset CDPATH

usage() {
    sed -n '2,/^set/{/^#/p}' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
}

HPCGNN_HOME=${HPCGNN_HOME:-$(cd "$(dirname "$0")/.." && pwd)}
export HPCGNN_HOME
# shellcheck source=jobs/profiles/plain.sh
source "$HPCGNN_HOME/jobs/profiles/${HPCGNN_PROFILE:-plain}.sh"

refuse() {
    printf 'pipeline.sh: %s: %q\n' "$1" "$2" >&2
    exit 2
}

nodes=1 convert_options=()
while [ $# -gt 0 ]; do
    case $1 in
        --nodes | --ranks-per-node | --convert) [ $# -ge 2 ] || refuse "give a value after" "$1" ;;
    esac
    case $1 in
        --nodes) nodes=$2 ;;
        --ranks-per-node) HPCGNN_RANKS_PER_NODE=$2 ;;
        --convert)
            # As a shell would divide it: 'kind,f*' in quotes is one word.
            words=$(xargs -r printf '%s\n' <<<"$2") || usage
            [ -z "$words" ] || mapfile -t convert_options <<<"$words"
            ;;
        --*) usage ;;
        *) break ;;
    esac
    shift 2
done
[ $# -ge 2 ] || usage
source=$1 name=$2
shift 2
case $name in
    '' | [-.]* | */* | *[[:cntrl:]]*) refuse "NAME must fit in the names of files" "$name" ;;
esac
for number in "$nodes" "$HPCGNN_RANKS_PER_NODE"; do
    case $number in
        '' | 0* | *[!0-9]* | ??????*) refuse "not a number of nodes or ranks" "$number" ;;
    esac
done

ranks=$((nodes * HPCGNN_RANKS_PER_NODE))
graph=graphs/$name.h5
partition=partitions/$name.p$ranks.h5
run_dir=runs/$name
mkdir -p graphs partitions "$run_dir"

previous=
# submit VERB ARGS...: the job starts when the previous one has succeeded, and is removed if it can't.
submit() {
    local verb=$1 shape=(--nodes="$nodes" --ntasks-per-node="$HPCGNN_RANKS_PER_NODE") after=()
    shift
    [ "$verb" != convert ] || shape=()
    [ -z "$previous" ] || after=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
    previous=$(sbatch --parsable --job-name="$name-$verb" "${shape[@]}" "${after[@]}" \
        "$HPCGNN_HOME/jobs/$verb.sbatch" "$@")
    previous=${previous%%;*}
    echo "$verb $previous"
}

# --force: files with these names were made by an earlier call of this script.
case $source in
    *.h5) graph=$source ;;
    *) submit convert "$source" "$graph" --force "${convert_options[@]}" ;;
esac
submit partition "$graph" --parts "$ranks" -o "$partition" --force
submit train "$partition" --run-dir "$run_dir" "$@"
# The code of a model of one's own is not in the run: predict must be told its file again.
own=()
train_options=("$@")
for i in "${!train_options[@]}"; do
    case ${train_options[i]} in
        --model) own=(--model "${train_options[i + 1]:-}") ;;
        --model=*) own=(--model "${train_options[i]#*=}") ;;
    esac
done
[[ ${own[1]:-} == *.py:* ]] || own=()
submit predict "$partition" "$run_dir" -o "$run_dir/predictions.h5" --force "${own[@]}"
