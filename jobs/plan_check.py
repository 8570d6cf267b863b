"""Trains briefly, and compares the estimates of `hpcgnn plan` with measurements.

    mpiexec -n 4 hpcgnn bench machine -o here.toml
    python jobs/plan_check.py here.toml WORK GRAPH.h5 ... --ranks 1 2 4

prints a line per graph, model and number of ranks: memory above the imports of the rank that takes
most, and seconds of an epoch with evaluation, planned and measured (the least of all but the
first: other processes only add). Partitions and runs stay in the folder WORK, and runs that are
there are not made again. Graphs without relations get some for R-GCN.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
HPCGNN = (sys.executable, "-m", "hpcgnn")


def run(command: Sequence[object], ranks: int = 0) -> str:
    """Return a command's output; end this script if it fails."""
    launcher = ["mpiexec", "-n", str(ranks)] if ranks else []
    words = [*launcher, *HPCGNN, *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def with_relations(graph: Path, work: Path, count: int = 8) -> Path:
    """Write the same graph with a random relation for each edge."""
    out = work / f"{graph.stem}.relations.h5"
    if out.exists():
        return out
    with h5py.File(graph) as file:
        pointer, source = file["edges/indptr"][:], file["edges/indices"][:]
        target = np.repeat(np.arange(len(pointer) - 1), np.diff(pointer))
        nodes = {"y": file["nodes/labels"][:], "split": file["nodes/split"][:, 0]}
        features = file["nodes/features"]
        width = features.shape[1] if isinstance(features, h5py.Dataset) else 0
        nodes["x"] = features[:] if width else np.zeros((len(pointer) - 1, 0), np.float32)
    if not width:  # sparse features would be made dense
        nodes["x"] = np.random.default_rng(0).normal(size=(len(pointer) - 1, 64))
    relation = np.random.default_rng(1).integers(0, count, len(source))
    import torch
    from torch_geometric.data import Data

    import hpcgnn

    data = Data(
        x=torch.from_numpy(nodes["x"].astype(np.float32)),
        y=torch.from_numpy(nodes["y"].astype(np.int64)),
        edge_index=torch.from_numpy(np.stack([source, target]).astype(np.int64)),
        edge_type=torch.from_numpy(relation),
        **{
            f"{name}_mask": torch.from_numpy(nodes["split"] == number)
            for number, name in enumerate(("train", "val", "test"), 1)
        },
    )
    return Path(hpcgnn.from_pyg(data, out))


def measure(
    part: Path, ranks: int, options: list[str], epochs: int, folder: Path
) -> dict[str, Any]:
    """Return bytes above the imports on the largest rank, and seconds of an epoch by phase."""
    kept = folder / "printed.txt"
    if not kept.exists():
        settings = [*options, "--epochs", epochs, "--checkpoint-every", 0]
        shutil.rmtree(folder, ignore_errors=True)  # a run that did not end
        kept.write_text(run(["train", part, *settings, "--run-dir", folder], ranks))
    printed = kept.read_text()
    found = re.search(r"above imports: (?:.* to )?([\d.]+) (\wB)", printed)
    if found is None:
        sys.exit(f"no peak in: {printed}")
    lines = (folder / "metrics.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]

    def least(name: str) -> float:
        return min(float(record[f"{name}_seconds"]) for record in records)

    phases = ("epoch", "forward", "backward", "reduce", "evaluate")
    return {
        "bytes": float(found[1]) * UNITS[found[2]],
        **{name: least(name) for name in phases},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("machine", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", default=["gcn", "sage", "gat", "gatv2", "rgcn"])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--options", default="--layers 3 --heads 4 --halo-buffer 16MiB")
    parser.add_argument("--epochs", type=int, default=40, help="the largest number of epochs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of training, about")
    parser.add_argument("--details", action="store_true", help="a JSON object per line")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.details:
        names = ("graph", "model", "ranks", "MB measured", "planned", "ratio")
        print(f"| {' | '.join((*names, 's measured', 'planned', 'ratio'))} |")
        print("|" + "---|" * 9, flush=True)
    for graph in args.graphs:
        for ranks in args.ranks:
            for model in args.models:
                one(args, graph, ranks, model)


def one(args: argparse.Namespace, graph: Path, ranks: int, model: str) -> None:
    """Measure, plan and print."""
    source = with_relations(graph, args.work) if model == "rgcn" else graph
    part = args.work / f"{source.stem}.p{ranks}.h5"
    if not part.exists():
        method = "block" if ranks == 1 else "kaminpar"
        run(["partition", source, "--parts", ranks, "--method", method, "-o", part])
    options = ["--model", model, "--hidden", str(args.hidden), *args.options.split()]
    said = json.loads(run(["plan", part, *options, "--machine", args.machine, "--json"]))
    (plan,) = said["plans"]
    epochs = max(4, min(args.epochs, round(args.seconds / plan["epoch_seconds"])))
    folder = args.work / f"run-{source.stem}-{model}-{args.hidden}-{ranks}"
    found = measure(part, ranks, options, epochs, folder)
    peak = plan["peak_bytes_per_rank"] - plan["memory_bytes"]["imports"]
    if args.details:
        print(json.dumps({"graph": graph.stem, "model": model, **found, **plan}), flush=True)
        return
    print(
        f"| {graph.stem} | {model} | {ranks} | {found['bytes'] / 1e6:,.0f} | {peak / 1e6:,.0f} | "
        f"{peak / found['bytes']:.2f} | {found['epoch']:.3f} | {plan['epoch_seconds']:.3f} | "
        f"{plan['epoch_seconds'] / found['epoch']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
