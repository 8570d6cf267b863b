"""Loading of a graph for training: from a partition file, or on one rank from graph.h5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError, counted
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.loading import refuse_while_loading
from hpcgnn.settings import check_path
from hpcgnn.storage.read import load
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import GRAPH


def load_partition(
    path: str | Path,
    comm: Any = None,
    *,
    split: int = 0,
    ring: Ring | None = None,
    mode: str = "sar",
) -> PartitionedGraph:
    """Read this rank's part from a partition file; on one rank, also from graph.h5 as one part.

    Args:
        path: a partition file with as many parts as `comm` has ranks, or on one rank graph.h5.
        comm: a `Communicator`, an mpi4py communicator, or None for all ranks of the job (one
            rank without mpiexec).
        split: number of the file's split that the masks show.
        ring: buffers and counters to use; by default a new `Ring`.
        mode: `sar`, `sa` or `oneshot`.

    Raises:
        InputError: the file is damaged, has another number of parts, has parts that contradict
            each other, or isn't the same on all ranks.
    """
    refuse_while_loading("load_partition")
    check_path(path, "load_partition", "path")
    comm = comm if isinstance(comm, Communicator) else Communicator.of(comm)
    if comm.size == 1 and is_graph(path):
        return _whole(Path(path), comm, split=split, ring=ring, mode=mode)
    return load.load_partition(path, comm, split=split, ring=ring, mode=mode)


def is_graph(path: str | Path) -> bool:
    """Return whether an hpcgnn file is a graph rather than a partition of one."""
    with Reader(path, None) as reader:
        return reader.text("format") == GRAPH


def _whole(
    path: Path, comm: Communicator, *, split: int, ring: Ring | None, mode: str
) -> PartitionedGraph:
    from hpcgnn.partition.layout import assembly  # not cheap to import
    from hpcgnn.partition.layout.sources import FileSource

    with GraphFile(path) as graph:
        count = graph.num_nodes
        graph.compare(graph.fingerprint_of(0, count))
        header: dict[str, Any] = {
            **graph.counts.attributes(),
            "graph_fingerprint": graph.fingerprint,
            "config": graph.kinds().stored(),
        }
        splits = int(header.get("num_splits", 0))
        if not 0 <= split < max(splits, 1):
            raise InputError(
                f"has {counted(splits, 'split')}, none with this number", file=path, value=split
            )
        owner = np.zeros(count, np.int32)
        (part,), _ = assembly.build(comm, FileSource(graph, 0, count), owner, 1, count)
    return load.assemble(part, comm, header, path, split=split, ring=ring, mode=mode)
