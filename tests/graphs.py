"""Small random graphs, their parts on the ranks of a test, and dense references."""

from __future__ import annotations

import functools
import hashlib
import pickle
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.partition.layout import assembly
from hpcgnn.partition.layout.sources import HeldSource
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.load import assemble
from hpcgnn.storage.read.nodes import NodeData


@dataclass
class Whole:
    """A graph in one piece: edges `source -> target` and node data by node id."""

    num_nodes: int
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    edge_features: np.ndarray | None
    features: np.ndarray
    labels: np.ndarray
    split: np.ndarray

    @property
    def edge_index(self) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.source, self.target]))

    def dense(self, weighted: bool = True) -> torch.Tensor:
        """float64 `[n, n]`: entry (i, j) sums the edges j -> i."""
        matrix = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.float64)
        ones = np.ones(len(self.source))
        values = ones if self.weight is None or not weighted else self.weight
        index = (torch.from_numpy(self.target), torch.from_numpy(self.source))
        return matrix.index_put_(index, torch.from_numpy(values).double(), accumulate=True)


def random_graph(
    num_nodes: int,
    num_edges: int,
    seed: int = 0,
    *,
    width: int = 5,
    symmetric: bool = False,
    weighted: bool = False,
    num_relations: int = 0,
    edge_width: int = 0,
    unlabelled: bool = False,
) -> Whole:
    """Return a random graph with self-loops and parallel edges; the last node is isolated."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, max(num_nodes - 1, 1), (2, num_edges))
    if num_edges > 2:
        ends[:, 1] = ends[:, 0]  # a parallel edge
        ends[1, 2] = ends[0, 2]  # a self-loop
    weight = rng.uniform(0.5, 2, num_edges).astype(np.float32) if weighted else None
    relation = rng.integers(0, num_relations, num_edges) if num_relations else None
    features = rng.normal(size=(num_edges, edge_width)).astype(np.float32) if edge_width else None
    if symmetric:
        straight = ends[0] != ends[1]
        ends = np.concatenate([ends, ends[::-1, straight]], axis=1)
        again = np.concatenate([np.arange(num_edges), np.flatnonzero(straight)])
        weight = None if weight is None else weight[again]
        relation = None if relation is None else relation[again]
        features = None if features is None else features[again]
    order = np.lexsort((ends[0], ends[1]))
    split = rng.integers(0, 4, num_nodes).astype(np.int8)
    return Whole(
        num_nodes,
        ends[0][order],
        ends[1][order],
        None if weight is None else weight[order],
        None if relation is None else relation[order].astype(np.int32),
        None if features is None else features[order],
        rng.normal(size=(num_nodes, width)).astype(np.float32),
        rng.integers(0, 3, num_nodes) if not unlabelled else np.full(num_nodes, -1),
        split,
    )


def random_owner(num_nodes: int, num_parts: int, seed: int = 0) -> np.ndarray:
    """Return a random part for each node; with three parts or more, part 1 stays empty."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, num_parts, num_nodes).astype(np.int32)
    if num_parts >= 3:
        owner[owner == 1] = 0
    return owner


class Layout:
    """A graph and the part of each node; equal to another if all values are."""

    def __init__(self, whole: Whole, owner: np.ndarray, size: int) -> None:
        self.whole, self.owner, self.size = whole, owner, size
        arrays = {**vars(whole), "owner": owner}
        described = {
            name: (array.dtype.str, array.shape, array.tobytes())
            if isinstance(array, np.ndarray)
            else array
            for name, array in arrays.items()
        }
        self.digest = hashlib.sha256(pickle.dumps((size, described))).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and other.digest == self.digest


@functools.lru_cache(maxsize=64)
def _laid_out(layout: Layout) -> list[bytes]:
    """Return the parts, pickled, since tests may change theirs; most graphs are used by several."""
    whole, size = layout.whole, layout.size
    counts = np.bincount(whole.target, minlength=whole.num_nodes)
    slab = GraphSlab(
        lo=0,
        hi=whole.num_nodes,
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=whole.source.astype(np.int64),
        weight=whole.weight,
        relation=whole.relation,
        edge_features=whole.edge_features,
    )
    nodes = NodeData(
        features=whole.features,
        labels=whole.labels.astype(np.int64),
        split=whole.split[:, None],
    )
    source = HeldSource(slab, nodes)
    parts, _ = assembly.build(_alone(), source, layout.owner, size, whole.num_nodes)
    return [pickle.dumps(part) for part in parts]


@functools.cache
def _alone() -> Communicator:
    return Communicator(MPI.COMM_SELF)


def distribute(
    whole: Whole,
    comm: Communicator,
    owner: np.ndarray | None = None,
    *,
    halo_buffer: int = 1 << 20,
    prefetch: int = 2,
    mode: str = "sar",
) -> PartitionedGraph:
    """Return this rank's part of `whole`, by the same layout code as the command line.

    Every rank lays out the whole graph by itself, without messages.
    """
    size = comm.size
    owner = random_owner(whole.num_nodes, size) if owner is None else owner
    part = pickle.loads(_laid_out(Layout(whole, owner, size))[comm.rank])
    header = {
        "num_nodes": whole.num_nodes,
        "num_edges": len(whole.source),
        "num_classes": 3,
        "num_relations": 0 if whole.relation is None else int(whole.relation.max()) + 1,
    }
    ring = Ring(comm, halo_buffer=halo_buffer, prefetch=prefetch)
    return assemble(part, comm, header, ring=ring, mode=mode)


def collect(graph: PartitionedGraph, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all ranks in the order of node ids, on every rank."""
    pieces = graph.ring.comm.allgather((graph.node_ids.numpy(), rows.detach().numpy()))
    ids = np.concatenate([piece[0] for piece in pieces])
    values = np.concatenate([piece[1] for piece in pieces])
    result = np.empty_like(values)
    result[ids] = values
    return torch.from_numpy(result)


def local(graph: PartitionedGraph, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of an array given by node id."""
    return torch.as_tensor(rows)[graph.node_ids].clone()
