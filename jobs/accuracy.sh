#!/usr/bin/env bash
# Test accuracies on the real graphs, 3 seeds each, as a table in Markdown:
#     jobs/accuracy.sh [ROW...]                     here, on HPCGNN_RANKS (2) ranks
#     sbatch --ntasks=2 jobs/accuracy.sh [ROW...]   as a job, which resumes where it was stopped
# A row is GRAPH/MODEL, such as cora/gcn; all of them by default. HPCGNN_TEST_DATA is the folder of
# the graphs, SEEDS the seeds, RESULTS the folder of the runs (runs/accuracy); finished runs are kept. OPTIONS
# are added to every run: OPTIONS="--precision bf16" RESULTS=runs/bf16 jobs/accuracy.sh
#SBATCH --job-name=accuracy
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --time=12:00:00
set -e
unset CDPATH
: "${HPCGNN_HOME:=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}"
# shellcheck source=jobs/launch.sh
source "$HPCGNN_HOME/jobs/launch.sh"

DATA=${HPCGNN_TEST_DATA:?set HPCGNN_TEST_DATA to the folder of the graphs}
RESULTS=${RESULTS:-runs/accuracy}
SEEDS=${SEEDS:-0 1 2}
ranks=${SLURM_NTASKS:-$HPCGNN_RANKS}

# Graph/model, required accuracy, options. From the papers of the graphs: Luo et al.
# 2024 (amazon, coauthor; minesweeper with fewer layers), Kipf & Welling and Velickovic et al. (cora),
# Schlichtkrull et al. 2018 (aifb).
luo="--head linear --lr 0.001 --eval-every 5 --patience 150"
mines="--metric auc --head linear --lr 0.01 --eval-every 10 --layers 10 --hidden 64 --dropout 0.2 --norm batch --residual --epochs 500"
rows="\
amazon_computers/gcn 93.5 --head linear --lr 0.001 --eval-every 5 --layers 3 --hidden 512 --dropout 0.5 --norm layer --weight-decay 5e-5 --epochs 700
amazon_computers/sage 92.8 $luo --layers 4 --hidden 64 --dropout 0.3 --norm layer --weight-decay 5e-5 --epochs 600
amazon_computers/gat 93.6 --head linear --lr 0.001 --eval-every 5 --layers 2 --hidden 64 --heads 1 --dropout 0.5 --norm layer --weight-decay 5e-5 --epochs 1000
coauthor_physics/gcn 97.2 $luo --layers 2 --hidden 64 --dropout 0.3 --norm layer --residual --weight-decay 5e-4 --epochs 250
coauthor_physics/sage 96.9 $luo --layers 2 --hidden 64 --dropout 0.7 --norm batch --residual --weight-decay 5e-4 --epochs 250
coauthor_physics/gat 97.0 $luo --layers 2 --hidden 256 --heads 1 --dropout 0.7 --norm batch --residual --weight-decay 5e-4 --epochs 200
cora/gcn 81.0 --layers 2 --hidden 16 --dropout 0.5 --input-dropout 0.5 --lr 0.01 --weight-decay 5e-4 --epochs 200
cora/gat 82.0 --layers 2 --hidden 64 --heads 8 --dropout 0.6 --input-dropout 0.6 --attention-dropout 0.6 --output-heads 1 --activation elu --lr 0.005 --weight-decay 5e-4 --epochs 600 --patience 300 --eval-every 2
minesweeper/gcn 89.5 $mines
minesweeper/sage 93.0 $mines
aifb/rgcn 91.0 --layers 2 --hidden 16 --embedding 16 --dropout 0 --lr 0.01 --weight-decay 5e-4 --epochs 50"

# graph NAME: its partition in $RESULTS, made if missing.
graph() {
    local source=$DATA/$1.npz options=() out=$RESULTS/$1.h5
    case $1 in
        cora) source=$DATA/planetoid options=(--format planetoid --row-normalise) ;;
        amazon_computers | coauthor_physics) options=(--row-normalise) ;;
        aifb) options=(--inverse-relations) ;;
    esac
    [ -e "$out" ] || serial convert "$source" "$out" "${options[@]}"
    [ -e "$RESULTS/$1.p$ranks.h5" ] ||
        launch partition "$out" --method parmetis -o "$RESULTS/$1.p$ranks.h5"
}

# run ROW SEED OPTIONS...: one training run; minesweeper uses one split per seed.
run() {
    local name=${1%/*} model=${1#*/} seed=$2 dir
    dir=$RESULTS/$name-$model-$seed
    shift 2
    [ "$name" != minesweeper ] || set -- "$@" --split "$seed"
    [ -e "$dir/DONE" ] && return
    launch train "$RESULTS/$name.p$ranks.h5" --model "$model" --seed "$seed" --run-dir "$dir" \
        --checkpoint-every 100 --resume "$@"
    if [ -e "$dir/REQUEUE" ]; then
        requeue_if_stopped "$dir"
        exit
    fi
    touch "$dir/DONE"
    [ -z "$passed" ] || exit 0  # a signal during the last epoch
}

table() {
    python - "$RESULTS" "$SEEDS" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

results, seeds = Path(sys.argv[1]), sys.argv[2].split()
print("| graph | model | test %, mean ± sd | aimed at | seeds |")
print("|---|---|---|---|---|")
for line in (results / "rows").read_text().splitlines():
    row, wanted = line.split()
    name, model = row.split("/")
    tests = []
    for seed in seeds:
        lines = (results / f"{name}-{model}-{seed}" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        scored = [record for record in records if record.get("test") is not None]
        # Chosen by validation if the graph has validation nodes, else the last epoch.
        valid = [record for record in scored if (record.get("valid") or 0) > 0]
        chosen = max(valid, key=lambda record: record["valid"]) if valid else scored[-1]
        tests.append(100 * chosen["test"])
    spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
    print(f"| {name} | {model} | {statistics.mean(tests):.2f} ± {spread:.2f} | {wanted} "
          f"| {len(tests)} |")
PYTHON
}

mkdir -p "$RESULTS"
: >"$RESULTS/rows"
# From descriptor 3, since mpiexec and srun read standard input.
while read -r -u 3 row wanted options; do
    [ $# -eq 0 ] || [[ " $* " = *" $row "* ]] || continue
    read -r -a options <<<"$options ${OPTIONS:-}"
    graph "${row%/*}"
    for seed in $SEEDS; do
        run "$row" "$seed" "${options[@]}"
    done
    echo "$row $wanted" >>"$RESULTS/rows"
done 3<<<"$rows"
table
