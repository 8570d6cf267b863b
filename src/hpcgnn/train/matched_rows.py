"""Learned rows of the nodes of a later graph, found by the ids of the nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.storage.schema import EARLIER_ROW
from hpcgnn.train.checkpoint.rows import read_sharded


def matched_rows(path: Path, graph: PartitionedGraph) -> dict[str, np.ndarray]:
    """Return the learned rows of the local nodes of a later graph; collective.

    A node that was not in the graph trained on gets the mean of the rows of the known nodes of its
    type, which a note says if the model reads them.

    Args:
        graph: it was converted with `--like`, and has the array `EARLIER_ROW`.

    Raises:
        InputError: as `read_sharded`.
    """
    earlier_N = graph.nodes[EARLIER_ROW].cpu().numpy()
    with agreed(graph.comm, "read learned rows"):
        if earlier_N.dtype != np.int64 or earlier_N.ndim != 1:
            raise InputError("must be a number for each node", file=graph.file, dataset=EARLIER_ROW)
        known = earlier_N >= 0
        found = read_sharded(path, earlier_N[known])
    types_N = np.zeros(len(earlier_N), np.int64)
    if graph.node_types is not None:
        types_N = graph.node_types.cpu().numpy().astype(np.int64)
    _say_new(graph, types_N, ~known)
    return {name: _completed(graph, rows, known, types_N) for name, rows in found.items()}


def _completed(
    graph: PartitionedGraph, rows: np.ndarray, known: np.ndarray, types_N: np.ndarray
) -> np.ndarray:
    """Return rows of all local nodes: the known ones, and means by type for the others."""
    types, width = max(1, graph.num_types), rows.shape[1]
    sums = np.zeros((types, width + 1))
    np.add.at(sums[:, :width], types_N[known], rows)
    sums[:, width] = np.bincount(types_N[known], minlength=types)
    sums = graph.comm.allreduce(sums, where="means of learned rows")
    means = sums[:, :width] / np.maximum(sums[:, width:], 1)
    out = means[types_N].astype(rows.dtype)
    out[known] = rows
    return out


def _say_new(graph: PartitionedGraph, types_N: np.ndarray, new: np.ndarray) -> None:
    reads = ~np.isin(types_N, list(graph.typed_features))
    counts = np.array([(new & reads).sum(), reads.sum()])
    number, total = graph.comm.allreduce(counts, where="new nodes").tolist()
    if number and graph.comm.rank == 0:
        kind = " without features" if graph.typed_features else ""
        type = " of their type" if graph.num_types else ""
        warn(
            f"hpcgnn: note: nodes{kind} that the graph trained on lacks: {number:,} of {total:,}; "
            f"these get the mean of the learned embeddings{type}"
        )
