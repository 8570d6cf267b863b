"""Writing of a distributed graph as one binary ParHIP file, which KaMinPar and KaHIP read.

The file holds three 64-bit numbers (version, nodes, neighbours), the offset in the file of each
row's neighbours (in bytes, one more than rows), the neighbours, and the weights of the nodes. The
version's bits tell what is absent (1: weights of edges, 2: of nodes) and what has 32 bits (4: the
offsets, 8: neighbours, 16: weights of nodes).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import OutputError, human
from hpcgnn.partition.edges import most_neighbours, neighbours
from hpcgnn.partition.kaminpar_process import GRAPH
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import Array

_HEADER = 24
_NO_EDGE_WEIGHTS, _NARROW_NEIGHBOURS, _NARROW_WEIGHTS = 1, 8, 16
_HELD = 1 << 28  # neighbours that one rank holds at a time
_SENT = 1 << 22  # numbers that are sent to rank 0 at a time


@dataclass(frozen=True)
class ParHIPLayout:
    """The widths of the file's numbers, and the most that it can take."""

    num_nodes: int
    most: int  # upper bound on the neighbours
    neighbour: type[np.integer]
    weight: type[np.integer]

    @classmethod
    def of(cls, comm: Communicator, problem: Problem) -> ParHIPLayout:
        """Return the layout for the graph of a problem. Collective."""
        most = most_neighbours(comm, problem.edges)
        heaviest = comm.allreduce(int(problem.cost.max(initial=0)), op="max")
        narrow, light = problem.num_nodes < 2**31, heaviest < 2**31
        return cls(
            problem.num_nodes,
            most,
            np.int32 if narrow else np.int64,
            np.int32 if light else np.int64,
        )

    @property
    def version(self) -> int:
        return (
            _NO_EDGE_WEIGHTS
            | (_NARROW_NEIGHBOURS if self.neighbour is np.int32 else 0)
            | (_NARROW_WEIGHTS if self.weight is np.int32 else 0)
        )

    @property
    def first(self) -> int:
        """Offset of the neighbours in bytes."""
        return _HEADER + 8 * (self.num_nodes + 1)

    @property
    def most_bytes(self) -> int:
        widths = [np.dtype(kind).itemsize for kind in (self.neighbour, self.weight)]
        return self.first + self.most * widths[0] + self.num_nodes * widths[1]


class ParHIPFile:
    """A ParHIP file, written by rank 0 from all ranks' data; only rank 0 has a folder."""

    def __init__(self, layout: ParHIPLayout, folder: Path | None) -> None:
        self._layout, self._folder = layout, folder
        self._error: OSError | None = None

    def write(self, comm: Communicator, problem: Problem) -> int:
        """Write the graph, a range of rows at a time; return its number of neighbours. Collective.

        Raises:
            OutputError: on all ranks, if rank 0 can't write.
        """
        layout, file = self._layout, None
        path = None if self._folder is None else self._folder / GRAPH
        width = np.dtype(layout.neighbour).itemsize
        ranges = max(1, -(-layout.most // (_HELD * comm.size)))
        bounds = layout.num_nodes * np.arange(ranges * comm.size + 1) // (ranges * comm.size)
        count = 0
        with agreed(comm, "write the graph for KaMinPar"):
            if path is not None:
                file = self._open(path)
        try:
            for k in range(0, ranges * comm.size, comm.size):
                rows = bounds[k : k + comm.size + 1]
                indptr, columns = neighbours(comm, problem.edges, rows, layout.neighbour)
                before = comm.allgather(len(columns))
                place = layout.first + width * (count + sum(before[: comm.rank]))
                low = int(rows[comm.rank])
                self._send(comm, file, _HEADER + 8 * low, place + width * indptr[:-1])
                self._send(comm, file, place, columns)
                count += sum(before)
            end = layout.first + width * count
            weight = np.maximum(problem.cost, 1).astype(
                layout.weight
            )  # nodes of weight 0 are not allowed
            place = end + problem.edges.lo * weight.itemsize
            self._send(comm, file, place, weight)
            if file is not None:
                self._put(file, _HEADER + 8 * layout.num_nodes, np.array([end]))
                self._put(file, 0, np.array([layout.version, layout.num_nodes, count]))
        finally:
            if file is not None:
                file.close()
        with agreed(comm, "write the graph for KaMinPar"):
            if self._error is not None:
                raise OutputError(
                    f"can't be written: {self._error.strerror}: set TMPDIR to a folder with up to "
                    f"{human(layout.most_bytes)} free",
                    file=path,
                ) from self._error
        return count

    def _open(self, path: Path) -> BinaryIO:
        try:
            return path.open("xb", buffering=0)
        except OSError as error:
            raise OutputError(f"can't be made: {error.strerror}", file=path) from error

    def _send(self, comm: Communicator, file: BinaryIO | None, place: int, values: Array) -> None:
        """Write `values` of every rank at their places in rank 0's file, some at a time."""
        step = max(1, _SENT // comm.size)
        places = comm.allgather((place, len(values)))
        empty = values[:0]
        for start in range(0, max(length for _, length in places), step):
            chunk = values[start : start + step]
            arrived = comm.alltoallv(
                [chunk, *[empty] * (comm.size - 1)], where="write the graph for KaMinPar"
            )
            if file is not None:
                for (first, _), found in zip(places, arrived, strict=True):
                    self._put(file, first + start * values.itemsize, found)

    def _put(self, file: BinaryIO, place: int, values: Array) -> None:
        """Write without raising, since the other ranks go on sending; keep the first error."""
        if not len(values):
            return
        data = np.ascontiguousarray(values).data.cast("B")
        try:
            while self._error is None and len(data):
                written = os.pwrite(file.fileno(), data, place)
                data, place = data[written:], place + written
        except OSError as error:
            self._error = error
