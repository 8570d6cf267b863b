"""The places of the whole graph's nodes, numbered rank by rank, and the user's ids of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.draws import unit
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import rows_of

_WORD = 8  # bytes


@dataclass(frozen=True)
class Places:
    """The places of all nodes; collectively computed by `graph.derived(FindPlaces())`.

    Attributes:
        first_P1: int64 `[P + 1]`, the place of each rank's first node, then the number of nodes.
        slab_P1: int64 `[P + 1]`, the bounds of the slab of ids whose places each rank knows.
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
        """Return the rank of each place."""
        return np.searchsorted(self.first_P1, places, side="right") - 1

    def is_local(self, places: np.ndarray) -> np.ndarray:
        low, high = self.first_P1[self.comm.rank : self.comm.rank + 2]
        inside: np.ndarray = (places >= low) & (places < high)
        return inside

    def look_up(self, places: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return rows at `places` of an array with a row per local node on each rank. Collective.

        A row is sent at most once to each rank that requests it.
        """
        return look_up(self.comm, self.first_P1, places, values)

    def of_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return places of nodes by their ids in the graph (`node_ids`). Collective."""
        return look_up(self.comm, self.slab_P1, ids, self.known)


@dataclass(frozen=True)
class FindPlaces:
    """The `Derivation` of the places of a graph's nodes."""

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
    """Return requested rows of an array that is distributed over the ranks in order. Collective.

    Args:
        first_P1: the number of each rank's first row, then the number of all rows.
        numbers: int64, the requested rows, repeated or not.
        values: this rank's rows.
    """
    once, back = np.unique(numbers, return_inverse=True)
    wanted = comm.alltoallv(np.split(once, np.searchsorted(once, first_P1[1:-1])), where="look up")
    answers = [values[rows - first_P1[comm.rank]] for rows in wanted]
    return np.concatenate(comm.alltoallv(answers, where="look up"))[back]


@dataclass(frozen=True)
class EdgeEnds:
    """The `Derivation` of the places of both ends of the edges into local nodes; collective.

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


@dataclass(frozen=True)
class UserIds:
    """The user's ids of all nodes and their places; each rank knows a share of the ids.

    Attributes:
        ids: int64, or bytes (UTF-8) of one width; those that this rank knows, ascending.
        places: int64, the places of these ids.
    """

    comm: Communicator
    ids: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, comm: Communicator, ids: np.ndarray, first: int) -> Self:
        """Return the table of the ids of each rank's nodes, all of one type. Collective.

        Args:
            first: the place of this rank's first node.
        """
        places = first + np.arange(len(ids), dtype=np.int64)
        order, cuts = _by_holder(comm, ids)
        told = comm.alltoallv(np.split(ids[order], cuts), where="places of ids")
        where = comm.alltoallv(np.split(places[order], cuts), where="places of ids")
        mine, theirs = np.concatenate(told), np.concatenate(where)
        ascending = np.argsort(mine)
        return cls(comm, mine[ascending], theirs[ascending])

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the places of nodes, int64, -1 if no node has the id. Collective."""
        order, cuts = _by_holder(self.comm, ids)
        answers = []
        for asked in self.comm.alltoallv(np.split(ids[order], cuts), where="look up ids"):
            at = np.minimum(np.searchsorted(self.ids, asked), len(self.ids) - 1)
            if len(self.ids):
                answers.append(np.where(self.ids[at] == asked, self.places[at], -1))
            else:
                answers.append(np.full(len(asked), -1, np.int64))
        places = np.empty(len(ids), np.int64)
        places[order] = np.concatenate(self.comm.alltoallv(answers, where="look up ids"))
        return places

    def places_of(self, ids: np.ndarray, file: str | Path | None = None) -> np.ndarray:
        """Return the places of nodes, int64. Collective.

        Raises:
            InputError: no node has one of the ids.
        """
        places = self.find(ids)
        with agreed(self.comm, "look up ids"):
            if (places < 0).any():
                raise unknown(ids[np.argmax(places < 0)], file)
        return places


def unknown(value: object, file: str | Path | None) -> InputError:
    """Return the error for an id that no node has."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return InputError(
        "no node has this id", file=file, value=value if isinstance(value, str) else int(str(value))
    )


def _by_holder(comm: Communicator, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an order of the ids by the ranks that know them, and the bounds between ranks."""
    holder = (unit(0, _numbers(ids)) * comm.size).astype(np.int64)
    order = np.argsort(holder, kind="stable")
    return order, np.searchsorted(holder[order], np.arange(1, comm.size))


def _numbers(ids: np.ndarray) -> np.ndarray:
    """Return integer ids as they are, or hashes of text ids that don't depend on their width."""
    if ids.dtype.kind != "S":
        return ids
    width = -(-ids.dtype.itemsize // _WORD)
    words = ids.astype(f"S{width * _WORD}").view(np.int64).reshape(len(ids), width)
    powers = np.int64(0x5851F42D4C957F2D) ** np.arange(width, dtype=np.int64)
    numbers: np.ndarray = (words * powers).sum(axis=1)
    return numbers
