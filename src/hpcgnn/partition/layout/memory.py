"""The memory that laying out the parts will take, estimated before they are known."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import window_bounds
from hpcgnn.partition.layout.blocks import asymmetry
from hpcgnn.partition.problem import Problem, shortage
from hpcgnn.partition.routing import ROWS, Array, Int64, local_parts
from hpcgnn.storage.read.graph_file import GraphFile

_FIXED = 26e6  # bytes on each rank: windows of edges, buffers of HDF5 and MPI
_WINDOWS = 16e6  # bytes on each rank: windows of node data
_UNEVEN = 1.03
_SURE = 1.15  # the estimate is at most this much above what is needed


@dataclass(frozen=True)
class LayoutNeed:
    """The counts of a graph and its parts on which the memory depends.

    Attributes:
        entries: pairs of a node and a part that it has an edge from, expected of random parts; of
            other parts fewer.
        sources: likewise pairs of a part and a node that it has an edge from, or owns.
        node_bytes: bytes of all nodes' data.
        edge_bytes, carried_bytes, widest: bytes of an edge's attributes, of those that the reversed
            graph has too, and of the widest of these.
        inside: greatest share of the edges within parts.
    """

    num_nodes: int
    num_edges: int
    num_parts: int
    entries: float
    sources: float
    node_bytes: int
    edge_bytes: int
    carried_bytes: int
    widest: int
    inside: float = 1.0

    @classmethod
    def of(cls, comm: Communicator, graph: GraphFile, problem: Problem, method: str) -> LayoutNeed:
        """Return the need for a graph file. Collective."""
        parts, nodes, edges = problem.num_parts, graph.num_nodes, graph.num_edges
        carried = graph.carried_bytes
        return cls(
            nodes,
            edges,
            parts,
            comm.allreduce(_entries(problem.edges.indptr, parts)),
            nodes * max(1.0, float(_distinct(np.array(edges / nodes), parts))),
            graph.node_bytes,
            graph.edge_bytes,
            sum(carried),
            max(carried, default=0),
            1 / parts if method == "random" else 1.0,
        )

    def bytes(self, share: float, *, symmetric: bool) -> float:
        """Return the most bytes a rank needs at a time, with `share` of the nodes and edges."""
        edges = max(self._sources(), self._orders(symmetric), self._blocks(), self._attributes())
        if not symmetric:
            edges = max(edges, self._reversed())
        share *= _UNEVEN
        return _FIXED + max(share * edges, _WINDOWS + share * self._nodes(symmetric))

    def _lists(self) -> float:
        """Return the bytes of the lists of edges in one direction."""
        return 4.0 * self.num_edges + 8 * self.entries + 4 * (self.sources - self.num_nodes)

    def _sources(self) -> float:
        return 40.0 * self.num_nodes + 9 * self.num_edges + 12 * self.sources

    def _orders(self, symmetric: bool) -> float:
        edges = 4 + self.inside * (4 if symmetric else 16)
        return 88.0 * self.num_nodes + edges * self.num_edges + 20 * self.sources

    def _blocks(self) -> float:
        return 56.0 * self.num_nodes + 8 * self.num_edges + 16 * self.entries + 26 * self.sources

    def _attributes(self) -> float:
        return 44.0 * self.num_nodes + self._lists() + (4 + self.edge_bytes) * self.num_edges

    def _reversed(self) -> float:
        kept = self._lists() + self.edge_bytes * self.num_edges
        coming = (8.0 + self.carried_bytes + self.widest) * self.num_edges + 24 * self.entries
        return 36.0 * self.num_nodes + kept + coming

    def _nodes(self, symmetric: bool) -> float:
        lists = self._lists() + self.edge_bytes * self.num_edges
        if not symmetric:
            lists += self._lists() + self.carried_bytes * self.num_edges
        checks = 8 * self.num_nodes + 4 * self.entries  # before the parts are written
        return 36.0 * self.num_nodes + lists + self.node_bytes + checks


def check_layout(comm: Communicator, graph: GraphFile, problem: Problem, method: str) -> None:
    """Compare what laying out the parts will need with the memory of each machine. Collective.

    Raises:
        InputError: it will not fit, whatever the parts.
    """
    need = LayoutNeed.of(comm, graph, problem, method)
    mine = len(local_parts(comm, problem.num_parts)) / problem.num_parts
    short = shortage(comm, need.bytes(mine, symmetric=False))
    if short is not None and _is_symmetric(comm, graph, problem):
        short = shortage(comm, need.bytes(mine, symmetric=True))
    if short is None:
        return
    if short.needed > _SURE * short.available:
        raise InputError(
            f"laying out the parts would need about {short}: start at least "
            f"{short.ranks(comm.size)} ranks, no more on each machine than now"
        )
    problem.notes.append(f"laying out the parts may need {short}")


def _is_symmetric(comm: Communicator, graph: GraphFile, problem: Problem) -> bool:
    total, edges = 0, problem.edges
    for low, high in pairwise(window_bounds(comm, edges.indptr).tolist()):
        with agreed(comm, "read the edges"):
            slab = graph.read_rows(edges.lo + low, edges.lo + high)
        total += asymmetry(slab)
    return sum(comm.allgather(total, where="partition: symmetry")) % 2**64 == 0


def _distinct(edges: Array, parts: int) -> Array:
    """Return the expected number of different parts at the other ends of so many edges."""
    return parts * -np.expm1(edges * np.log1p(-1 / parts)) if parts > 1 else np.minimum(edges, 1.0)


def _entries(indptr: Int64, parts: int) -> float:
    total = 0.0
    for low in range(0, len(indptr) - 1, ROWS):
        total += float(_distinct(np.diff(indptr[low : low + ROWS + 1]), parts).sum())
    return total
