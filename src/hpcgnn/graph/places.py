"""Where the nodes of the whole graph lie, of which each rank keeps its share.

The *place* of a node is its local row plus the number of nodes on all lower ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import rows_of


@dataclass(frozen=True)
class Places:
    """Ask by `graph.derived(FindPlaces())`, on all ranks.

    Attributes:
        first_P1: int64 `[P + 1]`, the place of each rank's first node, and the number of nodes.
        slab_P1: int64 `[P + 1]`, which ids each rank knows the places of.
        known: int64, the places of this rank's slab of ids.
    """

    comm: Communicator
    first_P1: np.ndarray
    slab_P1: np.ndarray
    known: np.ndarray

    @property
    def first(self) -> int:
        """The place of this rank's first node."""
        return int(self.first_P1[self.comm.rank])

    def owner(self, places: np.ndarray) -> np.ndarray:
        """The rank of each place."""
        return np.searchsorted(self.first_P1, places, side="right") - 1

    def is_local(self, places: np.ndarray) -> np.ndarray:
        low, high = self.first_P1[self.comm.rank : self.comm.rank + 2]
        inside: np.ndarray = (places >= low) & (places < high)
        return inside

    def look_up(self, places: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The rows at `places` of an array that has a row per local node on each rank; collective.

        A row travels once to each rank that asks for it.
        """
        return look_up(self.comm, self.first_P1, places, values)

    def of_ids(self, ids: np.ndarray) -> np.ndarray:
        """The places of nodes by their ids in the graph (`node_ids` of their ranks); collective."""
        return look_up(self.comm, self.slab_P1, ids, self.known)


@dataclass(frozen=True)
class FindPlaces:
    """Derives the places of a graph's nodes."""

    def build(self, graph: PartitionedGraph) -> Places:
        comm, ids = graph.comm, graph.node_ids.cpu().numpy()
        counts_P = comm.allgather(len(ids), where="places of nodes")
        first_P1 = np.concatenate([[0], np.cumsum(counts_P)]).astype(np.int64)
        ranks = np.arange(comm.size + 1, dtype=np.int64)
        slab_P1 = graph.num_nodes // comm.size * ranks
        slab_P1[-1] = graph.num_nodes
        order = np.argsort(ids)
        cuts = np.searchsorted(ids[order], slab_P1[1:-1])
        places = first_P1[comm.rank] + order
        asked = comm.alltoallv(np.split(ids[order], cuts), where="places of nodes")
        told = comm.alltoallv(np.split(places, cuts), where="places of nodes")
        known = np.full(slab_P1[comm.rank + 1] - slab_P1[comm.rank], -1, np.int64)
        for theirs, where in zip(asked, told, strict=True):
            known[theirs - slab_P1[comm.rank]] = where
        return Places(comm, first_P1, slab_P1, known)


def look_up(
    comm: Communicator, first_P1: np.ndarray, numbers: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Rows of something that lies on the ranks one after the other; collective.

    Args:
        first_P1: the number of each rank's first row, and of all rows.
        numbers: int64, the rows that are asked for, as often as wished.
        values: this rank's rows.
    """
    once, back = np.unique(numbers, return_inverse=True)
    wanted = comm.alltoallv(np.split(once, np.searchsorted(once, first_P1[1:-1])), where="look up")
    answers = [values[rows - first_P1[comm.rank]] for rows in wanted]
    return np.concatenate(comm.alltoallv(answers, where="look up"))[back]


@dataclass(frozen=True)
class EdgeEnds:
    """Derives the places of the ends of the edges into local nodes; collective.

    Both int64 `[E]`, source and target, in the order of `sar.messages.edge_features`.
    """

    def build(self, graph: PartitionedGraph) -> tuple[np.ndarray, np.ndarray]:
        edges, places = graph.in_edges, graph.derived(FindPlaces())
        rows_P = [rows.cpu().numpy().astype(np.int64) for rows in edges.send_rows]
        halo_P = graph.comm.alltoallv(rows_P, where="ends of edges")
        sources, targets = [], []
        for block in edges.blocks:
            column = block.columns.cpu().numpy()
            row = column if block.peer == edges.rank else halo_P[block.peer][column]
            sources.append(row.astype(np.int64) + places.first_P1[block.peer])
            counts = (block.end - block.begin).cpu()
            targets.append(rows_of(block).cpu().repeat_interleave(counts).numpy() + places.first)
        return np.concatenate(sources), np.concatenate(targets)
