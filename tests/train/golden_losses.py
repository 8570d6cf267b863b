"""Short runs with recorded losses: a change not meant to change the mathematics keeps them.

`mpiexec -n P python -m tests.train.golden_losses` runs them on P ranks and writes the results
into `golden_losses.json`; run it for P = 1, 2, 3 after a change that is meant to change them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.cpu.library import instruction_set
from hpcgnn.storage.read.load import sparse_rows
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from tests.graphs import distribute, local, random_graph

TABLE = Path(__file__).with_suffix(".json")
RANKS = (1, 2, 3)
NUM_NODES, NUM_EDGES = 83, 300  # not a multiple of anything
COMMON = {
    "layers": 3,
    "hidden": 8,
    "heads": 2,
    "epochs": 3,
    "checkpoint_every": 0,
    "halo_buffer": "4096",
    "dropout": 0.4,
    "seed": 3,
}

# Name: (settings, the graph's arguments, form of its features)
RUNS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "gcn": ({"model": "gcn", "norm": "batch"}, {"weighted": True}, "dense"),
    "gcn wide": ({"model": "gcn", "mode": "oneshot", "weight_decay": 1e-3}, {}, "dense"),
    "sage": ({"model": "sage", "norm": "layer", "residual": True}, {"symmetric": True}, "dense"),
    "sage sparse": ({"model": "sage", "mode": "sa", "optimizer": "sgd"}, {}, "sparse"),
    "sage typed": ({"model": "sage", "embedding": 4}, {}, "typed"),
    "sage labels": ({"model": "sage", "labels_as_input": 0.5, "schedule": "cosine"}, {}, "dense"),
    "sage bf16": ({"model": "sage", "precision": "bf16"}, {}, "dense"),
    "gat": ({"model": "gat", "attention_dropout": 0.3, "norm": "graph"}, {}, "dense"),
    "gat kept": ({"model": "gat", "mode": "sa", "attention_dropout": 0.2}, {}, "dense"),
    "gat head": ({"model": "gat", "head": "linear", "jumping": "max"}, {}, "dense"),
    "gatv2": ({"model": "gatv2", "attention_dropout": 0.3}, {"edge_width": 2}, "dense"),
    "gin": ({"model": "gin", "adversarial_steps": 2, "mode": "oneshot"}, {}, "dense"),
    "rgcn": ({"model": "rgcn", "bases": 2}, {"num_relations": 3}, "dense"),
    "appnp": ({"model": "appnp", "power": 4, "optimizer": "adamw"}, {}, "dense"),
    "sgc": ({"model": "sgc", "power": 2, "layers": 1}, {"weighted": True}, "dense"),
    "dagnn": ({"model": "dagnn", "power": 3, "input_dropout": 0.2}, {}, "dense"),
}


def machine() -> str:
    """Return what the last bit depends on: processor, our kernels' instruction set, torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    values = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    processor = " ".join(values.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{processor}, {instruction_set()}, torch {torch.__version__}"


def losses(name: str, comm: Communicator) -> list[float]:
    """Return the losses of three epochs. Collective."""
    settings, arguments, kind = RUNS[name]
    config = Config.of(**{**COMMON, **settings})  # type: ignore[arg-type]
    whole = random_graph(NUM_NODES, NUM_EDGES, seed=5, **arguments)  # type: ignore[arg-type]
    graph = with_features(distribute(whole, comm, halo_buffer=4096), whole.features, kind)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(comm.broadcast(folder))
        trainer = configured_trainer(graph, config, shared)
        trainer.run()
        comm.barrier()
        lines = (shared / "metrics.jsonl").read_text().splitlines()
        found = [float(json.loads(line)["loss"]) for line in lines]
        comm.barrier()
    return found


def with_features(graph: PartitionedGraph, rows_NF: np.ndarray, kind: str) -> PartitionedGraph:
    if kind == "sparse":
        own_NF = np.where(rows_NF > 0, rows_NF, 0)[graph.node_ids.numpy()]
        counts = (own_NF != 0).sum(axis=1)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        data, columns = own_NF[own_NF != 0], np.nonzero(own_NF)[1]
        return replace(graph, features=sparse_rows(indptr, columns, data, rows_NF.shape[1]))
    if kind == "typed":
        types = local(graph, np.arange(NUM_NODES) % 3)
        features = local(graph, rows_NF)
        typed = {0: features[types == 0][:, :3], 2: features[types == 2]}
        typed = {kind: rows.contiguous() for kind, rows in typed.items()}
        return replace(graph, features=None, node_types=types, typed_features=typed)
    return graph


def main() -> None:
    comm = Communicator()
    found = {name: losses(name, comm) for name in RUNS}
    if comm.rank == 0:
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        if table.get("machine") != machine():
            table = {"machine": machine(), "losses": {}}
        table["losses"][str(comm.size)] = found
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    comm.close()


if __name__ == "__main__":
    main()
