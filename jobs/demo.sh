#!/usr/bin/env bash
# The whole pipeline without a queue: generate, partition, train and predict on 2 local ranks.
# `make demo` calls it. VENV is the Python environment; results are in demo/.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
PATH="$(cd "$bin" && pwd):$PATH"
export PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# shellcheck source=jobs/attended.sh
source jobs/attended.sh

show() {
    local status=0
    printf '\n$ %s\n' "$*"
    attended "$@" || status=$?
    # Training that a signal stopped ends with status 0.
    [ -z "$passed" ] || exit "$status"
    return "$status"
}

mkdir -p demo
rm -rf demo/graph.h5 demo/graph.p2.h5 demo/run demo/predictions.h5
show hpcgnn generate sbm demo/graph.h5 --nodes 20000 --degree 30 --features 64 --classes 8 \
    --homophily 0.8 --seed 1
show mpiexec -n 2 hpcgnn partition demo/graph.h5 --method parmetis -o demo/graph.p2.h5
show mpiexec -n 2 hpcgnn train demo/graph.p2.h5 --model sage --layers 3 --hidden 64 --dropout 0.3 \
    --norm layer --epochs 30 --checkpoint-every 10 --run-dir demo/run
show mpiexec -n 2 hpcgnn predict demo/graph.p2.h5 demo/run/checkpoints/best.h5 -o demo/predictions.h5

# The accuracy, computed from the files: predictions are in the order of the graph's nodes.
printf '\n'
python -P - <<'PYTHON'
import h5py

with h5py.File("demo/graph.h5") as graph, h5py.File("demo/predictions.h5") as predictions:
    test = graph["nodes/split"][:, 0] == 3
    right = predictions["classes"][:][test] == graph["nodes/labels"][:][test]
    print(f"test accuracy {100 * right.mean():.2f} % on {test.sum():,} nodes")
PYTHON
mpiexec=$bin/mpiexec
[ -x "$mpiexec" ] || mpiexec=mpiexec
cat <<END
graph, partition   demo/graph.h5, demo/graph.p2.h5
run                demo/run/ (metrics.jsonl, checkpoints)
predictions        demo/predictions.h5
next               $mpiexec -n 2 $bin/hpcgnn train demo/graph.p2.h5 --model gat \\
                       --hidden 64 --epochs 30 --run-dir demo/gat
END
