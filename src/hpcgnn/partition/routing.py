"""The three ways rows travel while a graph is partitioned.

From slab owners to part owners (`Route`), from anyone to slab owners and back (`Slabs.lookup`),
and between parts (`between_parts`). Part p lives on rank p % size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.sorting import Array, Int64, edge_positions, group_by, pointers


def local_parts(comm: Communicator, num_parts: int) -> range:
    """The parts that this rank assembles."""
    return range(comm.rank, num_parts, comm.size)


class Slabs:
    """Which rank holds which consecutive rows of the graph.

    Raises:
        InputError: the slabs, in the order of the ranks, do not cover `0 .. num_nodes - 1`.
    """

    def __init__(self, comm: Communicator, low: int, high: int, num_nodes: int) -> None:
        bounds = comm.allgather((int(low), int(high)))
        self._comm, self.low, self.high = comm, low, high
        self.ends: Int64 = np.array([high for _, high in bounds], np.int64)
        reached = 0
        for rank, (start, end) in enumerate(bounds):
            if start != reached or end < start:
                raise InputError(
                    f"slabs must follow each other: expected one from row {reached}",
                    value=(start, end),
                    rank=rank,
                )
            reached = end
        if reached != num_nodes:
            raise InputError(f"slabs end at row {reached} of {num_nodes}")

    def lookup(self, ids: Int64, values: Array) -> Array:
        """`values` (one per row of every rank's own slab) at `ids` (ascending): [len(ids)]."""
        cuts = np.searchsorted(ids, self.ends)
        wanted = self._comm.alltoallv(np.split(ids, cuts[:-1]), where="partition: look up rows")
        answers = [values[rows - self.low] for rows in wanted]
        return np.concatenate(self._comm.alltoallv(answers, where="partition: answer look-ups"))


@dataclass(frozen=True)
class Route:
    """Sends each slab row to the rank that assembles its part."""

    comm: Communicator
    order: Array  # slab rows, by destination rank
    cuts: Array  # [size + 1] into order

    @classmethod
    def to_parts(cls, comm: Communicator, owner: Array) -> Route:
        cuts, order = group_by(owner % comm.size, comm.size)
        return cls(comm, order, cuts)

    def rows(self, values: Array) -> Array:
        """One value (or row of an array) per slab row; arrives in ascending order of the row."""
        chunks = [values[self.order[a:b]] for a, b in self._ranges()]
        return np.concatenate(self.comm.alltoallv(chunks, where="partition: distribute rows"))

    def ragged(self, indptr: Int64, values: Array) -> Array:
        """`indptr[i+1] - indptr[i]` values per slab row i; arrives like `rows`."""
        chunks = [values[edge_positions(indptr, self.order[a:b])] for a, b in self._ranges()]
        return np.concatenate(self.comm.alltoallv(chunks, where="partition: distribute edges"))

    def _ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.cuts[:-1].tolist(), self.cuts[1:].tolist(), strict=True))


def between_parts(
    comm: Communicator,
    num_parts: int,
    values: Sequence[Array],
    counts: Sequence[Int64],
    template: Array,
) -> tuple[list[Array], list[Int64]]:
    """Exchange among parts. `values[k]`, of this rank's k-th part, lies sorted by target part.

    `counts[k][q]` of them go to part q. Returns the same for what arrives: per local part the
    values in the order of the part they come from, and how many came from each. `template` is an
    empty array of the common dtype and trailing shape.
    """
    size, parts = comm.size, local_parts(comm, num_parts)
    table = np.array(counts, np.int64).reshape(len(parts), num_parts)
    starts = [pointers(row) for row in table]
    bodies = []
    for rank in range(size):
        chunks = [
            values[k][starts[k][q] : starts[k][q + 1]]
            for k in range(len(parts))
            for q in range(rank, num_parts, size)
        ]
        bodies.append(np.concatenate([template, *chunks]))
    heads = [np.ascontiguousarray(table[:, rank::size]).ravel() for rank in range(size)]
    heads = comm.alltoallv(heads, where="partition: exchange among parts")
    bodies = comm.alltoallv(bodies, where="partition: exchange among parts")

    arrived = np.empty((len(parts), num_parts), np.int64)
    chunks_of: list[list[Array]] = [[template] * num_parts for _ in parts]
    for rank in range(size):
        head = heads[rank].reshape(len(range(rank, num_parts, size)), len(parts))
        arrived[:, rank::size] = head.T
        cuts = pointers(head.ravel())
        position = 0
        for p in range(rank, num_parts, size):
            for k in range(len(parts)):
                chunks_of[k][p] = bodies[rank][cuts[position] : cuts[position + 1]]
                position += 1
    return [np.concatenate([template, *chunks]) for chunks in chunks_of], list(arrived)
