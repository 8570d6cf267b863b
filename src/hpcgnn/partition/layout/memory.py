"""The memory that laying out the parts will take: before they are known, and once they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.shortage import Shortage, shortage
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import window_bounds
from hpcgnn.partition.layout.blocks import asymmetry
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import ROWS, Array, Int64, local_parts
from hpcgnn.storage.read.graph_file import GraphFile

_FIXED = 26e6  # bytes on each rank: windows of edges, buffers of HDF5 and MPI
_WINDOWS = 16e6  # bytes on each rank: windows of node data
_UNEVEN = 1.03  # of parts that are not known yet
_SURE = 1.15  # the estimate is at most this much above what is needed
_FAR = 1.2  # times the mean: a part that is named as large


@dataclass(frozen=True)
class Held:
    """What each part holds, `[P]`, or several parts together.

    Attributes:
        nodes, node_bytes: nodes, and the bytes of their data.
        edges: edges into them.
        entries: pairs of a node and a part that it has an edge from, expected of random parts of
            these sizes; of others there are fewer.
        sources: likewise pairs of a part and a node that it has an edge from, or owns.
        out_edges, out_entries, out_sources: the same in the other direction.
    """

    nodes: Array
    node_bytes: Array
    edges: Array
    entries: Array
    sources: Array
    out_edges: Array
    out_entries: Array
    out_sources: Array

    def of(self, parts: range) -> Held:
        """Return what these parts hold together."""
        return Held(*(getattr(self, entry.name)[parts].sum() for entry in fields(self)))


@dataclass(frozen=True)
class LayoutNeed:
    """The memory that the parts of a graph need on a rank, by what they hold.

    Attributes:
        edge_bytes, carried_bytes, widest: bytes of an edge's attributes, of those that the reversed
            graph has too, and of the widest of these.
        inside: greatest share of the edges within parts.
    """

    edge_bytes: int
    carried_bytes: int
    widest: int
    inside: float

    @classmethod
    def of(cls, graph: GraphFile, num_parts: int, method: str) -> LayoutNeed:
        carried = graph.carried_bytes
        inside = 1 / num_parts if method == "random" else 1.0
        return cls(graph.edge_bytes, sum(carried), max(carried, default=0), inside)

    def bytes(self, held: Held, *, symmetric: bool) -> float:
        """Return the most bytes that a rank whose parts hold this needs at a time."""
        inside = self.inside * (4 if symmetric else 16)
        edges = max(
            40 * held.nodes + 9 * held.edges + 12 * held.sources,
            88 * held.nodes + (4 + inside) * held.edges + 20 * held.sources,
            56 * held.nodes + 8 * held.edges + 16 * held.entries + 26 * held.sources,
            44 * held.nodes + _lists(held) + (4 + self.edge_bytes) * held.edges,
        )
        if not symmetric:
            edges = max(edges, self._reversed(held))
        return float(_FIXED + max(edges, _WINDOWS + self._nodes(held, symmetric)))

    def _reversed(self, held: Held) -> float:
        kept = _lists(held) + self.edge_bytes * held.edges
        block = self.inside * min(held.edges, held.out_edges)  # the largest, which is being sorted
        beside = max(4 * block, (self.carried_bytes + self.widest) * held.out_edges)
        coming = 8 * held.out_edges + beside + 24 * held.out_entries
        return float(36 * held.nodes + kept + coming)

    def _nodes(self, held: Held, symmetric: bool) -> float:
        lists = _lists(held) + self.edge_bytes * held.edges
        if not symmetric:
            lists += 4 * held.out_edges + 8 * held.out_entries
            lists += 4 * (held.out_sources - held.nodes) + self.carried_bytes * held.out_edges
        checks = 8 * held.nodes + 4 * held.entries  # before the parts are written
        return float(36 * held.nodes + lists + held.node_bytes + checks)


def _lists(held: Held) -> float:
    """Return the bytes of the lists of edges in one direction."""
    return float(4 * held.edges + 8 * held.entries + 4 * (held.sources - held.nodes))


def if_even(comm: Communicator, graph: GraphFile, problem: Problem) -> Held:
    """Return what each part will hold if the parts are about even. Collective."""
    parts = problem.num_parts
    entries = _entries(problem.edges.indptr, parts)
    entries = comm.allreduce(entries, where="memory of the parts")
    nodes, node_bytes, edges, entries_P = (
        np.full(parts, _UNEVEN * total / parts)
        for total in (graph.num_nodes, graph.node_bytes, graph.num_edges, entries)
    )
    sources = _sources(graph, nodes, edges)
    return Held(nodes, node_bytes, edges, entries_P, sources, edges, entries_P, sources)


def as_cut(
    comm: Communicator, graph: GraphFile, problem: Problem, owner: Array, out_edges: Int64
) -> Held:
    """Return what each part holds. Collective.

    Args:
        owner: the part of each row of this rank's slab.
        out_edges: `[P]`, the edges from the nodes of each part.
    """
    parts, slab = problem.num_parts, problem.edges
    counts_4P = np.zeros((4, parts))
    with agreed(comm, "read the nodes"):
        for low in range(0, len(owner), ROWS):
            own = owner[low : low + ROWS]
            degree = np.diff(slab.indptr[low : low + len(own) + 1])
            node_bytes = graph.bytes_of_nodes(slab.lo + low, slab.lo + low + len(own))
            for total, weights in zip(
                counts_4P, (None, node_bytes, degree, _distinct(degree, parts)), strict=True
            ):
                total += np.bincount(own, weights, parts)
    nodes, node_bytes, edges, entries = comm.allreduce(counts_4P, where="memory of the parts")
    out_entries = np.minimum(out_edges, entries.sum() * out_edges / max(graph.num_edges, 1))
    sources, out_sources = (_sources(graph, nodes, found) for found in (edges, out_edges))
    return Held(nodes, node_bytes, edges, entries, sources, out_edges, out_entries, out_sources)


def check_layout(comm: Communicator, graph: GraphFile, problem: Problem, method: str) -> None:
    """Compare what laying out parts will need with the memory of each machine. Collective.

    Raises:
        InputError: it will not fit, whatever the parts.
    """
    _shortage(comm, graph, problem, method, if_even(comm, graph, problem))


def check_parts(
    comm: Communicator,
    graph: GraphFile,
    problem: Problem,
    method: str,
    owner: Array,
    out_edges: Int64,
) -> None:
    """Compare likewise for parts that are known, which may be far from even. Collective.

    Args: as for `as_cut`.

    Raises:
        InputError: it will not fit.
    """
    held = as_cut(comm, graph, problem, owner, out_edges)
    short = _shortage(comm, graph, problem, method, held)
    if short is not None:
        problem.notes.append(f"laying out the parts may need {short}")


def _shortage(
    comm: Communicator, graph: GraphFile, problem: Problem, method: str, held: Held
) -> Shortage | None:
    """Return the machine that may lack memory; raise InputError if it surely does."""
    need = LayoutNeed.of(graph, problem.num_parts, method)
    mine = held.of(local_parts(comm, problem.num_parts))
    short = shortage(comm, need.bytes(mine, symmetric=False))
    if short is not None and _is_symmetric(comm, graph, problem):
        short = shortage(comm, need.bytes(mine, symmetric=True))
    if short is not None and short.needed > _SURE * short.available:
        raise InputError(
            f"laying out the parts would need about {short}: {_advice(comm, short, held)}"
        )
    return short


def _advice(comm: Communicator, short: Shortage, held: Held) -> str:
    """Return what to do about parts that will not fit."""
    parts, ranks = len(held.nodes), short.ranks(comm.size)
    more = f"start at least {ranks} ranks, no more on each machine than now"
    if ranks > parts:
        more += f", for at least {ranks} parts"
    counts = {
        "nodes": held.nodes,
        "node data": held.node_bytes,
        "in-edges": held.edges,
        "out-edges": held.out_edges,
    }
    over, name = max((float(a.max() * parts / max(a.sum(), 1)), name) for name, a in counts.items())
    if over < _FAR:
        return more
    return f"one part has {over:.1f} times the mean of {name}, so choose another method, or {more}"


def _is_symmetric(comm: Communicator, graph: GraphFile, problem: Problem) -> bool:
    total, edges = 0, problem.edges
    for low, high in pairwise(window_bounds(comm, edges.indptr).tolist()):
        with agreed(comm, "read the edges"):
            slab = graph.read_rows(edges.lo + low, edges.lo + high)
        total += asymmetry(slab)
    return sum(comm.allgather(total, where="partition: symmetry")) % 2**64 == 0


def _sources(graph: GraphFile, nodes: Array, edges: Array) -> Array:
    """Return the rows that each part reads or owns, as expected for so many nodes and edges."""
    share = np.minimum(edges / max(graph.num_edges, 1), 1 - 1e-9)
    read = -np.expm1(graph.num_edges / graph.num_nodes * np.log1p(-share))
    return np.maximum(nodes, graph.num_nodes * read)


def _distinct(edges: Array, parts: int) -> Array:
    """Return the expected number of different parts at the other ends of so many edges."""
    return parts * -np.expm1(edges * np.log1p(-1 / parts)) if parts > 1 else np.minimum(edges, 1.0)


def _entries(indptr: Int64, parts: int) -> float:
    total = 0.0
    for low in range(0, len(indptr) - 1, ROWS):
        total += float(_distinct(np.diff(indptr[low : low + ROWS + 1]), parts).sum())
    return total
