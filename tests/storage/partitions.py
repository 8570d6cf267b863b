"""Parts of small random graphs on any number of ranks, as the partition verb would write them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.layout import assembly
from hpcgnn.partition.layout.sources import HeldSource
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData
from hpcgnn.storage.read.partition_file import Part, write_parts
from tests.graphs import Whole, random_graph, random_owner


def small_parts(
    comm: Communicator,
    num_parts: int,
    *,
    symmetric: bool = False,
    sparse: bool = False,
    even: bool = False,
) -> tuple[list[Part], dict[str, Any]]:
    """Return this rank's parts of a graph with every kind of column, and the header.

    `even`: no part is empty.
    """
    whole = random_graph(30, 120, weighted=True, num_relations=3, edge_width=2, symmetric=symmetric)
    cuts = [whole.num_nodes * rank // comm.size for rank in range(comm.size + 1)]
    lo, hi = cuts[comm.rank], cuts[comm.rank + 1]
    nodes = NodeData(
        features=_sparse(whole.features[lo:hi]) if sparse else whole.features[lo:hi],
        labels=whole.labels[lo:hi].astype(np.int64),
        split=whole.split[lo:hi, None],
        original_ids=np.arange(lo, hi) * 7,
        named={
            "position": whole.features[lo:hi, :2].astype(np.float64),
            "flag": whole.labels[lo:hi] > 0,
        },
    )
    owner = random_owner(whole.num_nodes, num_parts)[lo:hi]
    if even:
        owner = np.arange(lo, hi) % num_parts
    source = HeldSource(_slab(whole, lo, hi), nodes)
    parts, _ = assembly.build(comm, source, owner, num_parts, whole.num_nodes)
    header = {
        "num_nodes": 30,
        "num_edges": len(whole.source),
        "num_features": whole.features.shape[1],
        "num_classes": 3,
        "multilabel": 0,
        "num_splits": 1,
        "num_relations": 3,
        "num_types": 0,
        "edge_width": 2,
        "symmetric": int(symmetric),
        "method": "random",
        "graph_fingerprint": "0123456789abcdef",
        "report": {
            "edge_cut": 12,
            "balance": {"nodes": 1.25},
            "halo_nodes": [7] * num_parts,
            "random": {"edge_cut": 34},
        },
        "config": {"parts": num_parts},
    }
    return parts, header


def write_small(path: Path, comm: Communicator, num_parts: int, **options: bool) -> list[Part]:
    """The file of `small_parts`, and this rank's parts."""
    parts, header = small_parts(comm, num_parts, **options)
    if comm.size == 1:
        path.write_bytes(_written_alone(num_parts, frozenset(options.items())))
    else:
        write_parts(path, comm, parts, header)
    return parts


@cache
def _written_alone(num_parts: int, options: frozenset[tuple[str, bool]]) -> bytes:
    """A file's content; writing it takes as long as most tests of it."""
    comm = Communicator(MPI.COMM_SELF)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.h5")
        write_parts(path, comm, *small_parts(comm, num_parts, **dict(options)))
        comm.close()
        return path.read_bytes()


def _slab(whole: Whole, lo: int, hi: int) -> GraphSlab:
    mine = (whole.target >= lo) & (whole.target < hi)
    counts = np.bincount(whole.target[mine] - lo, minlength=hi - lo)
    return GraphSlab(
        lo,
        hi,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        whole.source[mine].astype(np.int64),
        None if whole.weight is None else whole.weight[mine],
        None if whole.relation is None else whole.relation[mine],
        None if whole.edge_features is None else whole.edge_features[mine],
        edge_labels=np.flatnonzero(mine) % 5 - 1,
        edge_split=(np.flatnonzero(mine) % 4).astype(np.int8),
    )


def _sparse(dense: np.ndarray) -> CsrRows:
    kept = dense > 0
    return CsrRows(
        np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64),
        np.nonzero(kept)[1].astype(np.int32),
        dense[kept],
        dense.shape[1],
    )
