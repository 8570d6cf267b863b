"""Features and splits of generated nodes, and writing of generated graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.display import SILENT, Display
from hpcgnn.storage.generate import streams
from hpcgnn.storage.schema import TEST, TRAIN, VALID
from hpcgnn.storage.write.graph_writer import GraphWriter

_SLAB_VALUES = 1 << 22


class FeatureColumns:
    """Features of nodes: the mean of the class, a random vector of length about one, plus noise.

    Args:
        num_features, num_classes: F and C; without classes the features are only noise.
        noise: standard deviation of each feature around the mean.
    """

    def __init__(
        self, num_nodes: int, num_features: int, num_classes: int, seed: int, noise: float
    ) -> None:
        self.num_nodes = num_nodes
        self.seed = seed
        self.noise = noise
        self.slab_rows = max(1, min(1 << 20, _SLAB_VALUES // max(1, num_features)))
        self.num_slabs = -(-num_nodes // self.slab_rows)
        means = streams.generator(seed, streams.MEANS).standard_normal((num_classes, num_features))
        self._means = (means / np.sqrt(max(1, num_features))).astype(np.float32)

    def slab(self, index: int) -> tuple[int, int]:
        """Return the bounds of a slab, nodes `lo .. hi - 1`."""
        lo = index * self.slab_rows
        return lo, min(self.num_nodes, lo + self.slab_rows)

    def features(self, index: int, labels: np.ndarray | None) -> np.ndarray:
        """Return the features of a slab's nodes, whose classes are `labels`: float32 [n, F]."""
        lo, hi = self.slab(index)
        random = streams.generator(self.seed, streams.FEATURES, index)
        features = random.standard_normal((hi - lo, self._means.shape[1]), dtype=np.float32)
        features *= np.float32(self.noise)
        if labels is not None:
            features += self._means[labels]
        return features


def split(seed: int, lo: int, hi: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Return int8 [n]: train, valid or test, in these shares, for the nodes `lo .. hi - 1`."""
    draw = streams.uniform(seed, streams.SPLIT, lo, hi) * sum(shares)
    chosen = np.full(hi - lo, TEST, np.int8)
    chosen[draw < shares[0] + shares[1]] = VALID
    chosen[draw < shares[0]] = TRAIN
    return chosen


_TAG = 71


class Generator(Protocol):
    """A generator of graphs slab by slab, each independent of the others."""

    num_nodes: int
    num_classes: int
    num_slabs: int

    def slab(self, index: int) -> tuple[int, int]: ...

    def rows(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def labels(self, lo: int, hi: int) -> np.ndarray: ...


def write_generated(
    path: Path,
    comm: Communicator,
    graph: Generator,
    *,
    num_features: int,
    seed: int,
    noise: float,
    shares: tuple[float, float, float],
    compress: bool,
    config: dict[str, Any],
    display: Display = SILENT,
) -> None:
    """Write the graph with features, labels and a split; collective.

    Each rank holds one slab in memory, rank 0 two. The file is the same for any number of ranks.

    Raises:
        OutputError: the file can't be written; nothing is left of it.
    """
    columns = FeatureColumns(graph.num_nodes, num_features, graph.num_classes, seed, noise)
    wide = graph.num_nodes > np.iinfo(np.int32).max

    def edges(index: int) -> list[np.ndarray]:
        counts, indices = graph.rows(index)
        return [counts, indices if wide else indices.astype(np.int32)]

    def nodes(index: int) -> list[np.ndarray]:
        lo, hi = columns.slab(index)
        labels = graph.labels(lo, hi) if graph.num_classes else None
        made = [split(seed, lo, hi, shares)]
        if labels is not None:
            made.append(labels)
        if num_features:
            made.append(columns.features(index, labels))
        return made

    with ExitStack() as stack:
        writer = _writer(stack, comm, path, graph, compress, config)

        def write_edges(made: list[np.ndarray]) -> None:
            if writer is not None:
                writer.append_rows(*made)
                stage.advance(len(made[0]))

        def write_nodes(made: list[np.ndarray]) -> None:
            if writer is not None:
                stage.advance(len(made[0]))
                writer.append_split(made.pop(0))
                if graph.num_classes:
                    writer.append_labels(made.pop(0))
                if num_features:
                    writer.append_features(made.pop(0))

        with display.stage("make the edges", graph.num_nodes, "nodes") as stage:
            _in_order(comm, graph.num_slabs, edges, write_edges)
        with display.stage("make the features", graph.num_nodes, "nodes") as stage:
            _in_order(comm, columns.num_slabs, nodes, write_nodes)
        with agreed(comm, "generate"):
            stack.close()


def _writer(
    stack: ExitStack,
    comm: Communicator,
    path: Path,
    graph: Generator,
    compress: bool,
    config: dict[str, Any],
) -> GraphWriter | None:
    """Return rank 0's writer, which `stack` closes; None on the other ranks."""
    writer: GraphWriter | None = None
    with agreed(comm, "generate"):
        if comm.rank == 0:
            writer = GraphWriter(
                path,
                num_nodes=graph.num_nodes,
                num_classes=graph.num_classes,
                compress=compress,
                config=config,
            )
            stack.enter_context(writer)
    return writer


def _in_order(
    comm: Communicator,
    total: int,
    make: Callable[[int], list[np.ndarray]],
    take: Callable[[list[np.ndarray]], None],
) -> None:
    """Pass the results of `make(0)`, `make(1)`, ..., computed by all ranks, to rank 0's `take`.

    An error on one rank is raised on all ranks.
    """
    failure: Exception | None = None
    for base in range(0, total, comm.size):
        made: list[np.ndarray] = []
        with agreed(comm, "generate"):
            if failure is not None:
                raise failure
            if base + comm.rank < total:
                made = make(base + comm.rank)
        if comm.rank == 0:
            for peer in range(min(comm.size, total - base)):
                made = _receive(comm, peer) if peer else made
                try:
                    if failure is None:
                        take(made)
                except Exception as error:  # raised on all ranks before the next slabs
                    failure = error
        elif made:
            _send(comm, made)
    with agreed(comm, "generate"):
        if failure is not None:
            raise failure


def _send(comm: Communicator, arrays: list[np.ndarray]) -> None:
    """Send each array after a line with its dtype and shape."""
    for array in arrays:
        line = f"{array.dtype.name},{','.join(map(str, array.shape))}"
        head = np.frombuffer(line.encode().ljust(128), np.uint8)
        last = np.array([array is arrays[-1]], np.uint8)
        buffers = [head, last, np.ascontiguousarray(array)]
        comm.wait_all([comm.isend(buffer, 0, _TAG) for buffer in buffers], "generate")


def _receive(comm: Communicator, peer: int) -> list[np.ndarray]:
    arrays = []
    last = np.zeros(1, np.uint8)
    while not last[0]:
        head = np.empty(128, np.uint8)
        comm.wait_all([comm.irecv(buffer, peer, _TAG) for buffer in (head, last)], "generate")
        dtype, *shape = head.tobytes().decode().strip().split(",")
        array = np.empty([int(length) for length in shape], dtype)
        comm.wait_all([comm.irecv(array, peer, _TAG)], "generate")
        arrays.append(array)
    return arrays
