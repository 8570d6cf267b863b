"""From the file named on the command line to the file that parts are loaded from."""

from __future__ import annotations

import os
from pathlib import Path

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.display import Display
from hpcgnn.errors import InputError
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import GRAPH, PARTITION
from hpcgnn.train.config import Config


def file_of_parts(source: Path, comm: Communicator, config: Config, display: Display) -> Path:
    """Return `source`, or the file of a partition of it with one part per rank; collective.

    On one rank a graph file is loaded as it is. On several ranks, its partition is reused from
    where `hpcgnn partition` puts it, or else made there and kept. Rank 0 prints which file it is.

    Raises:
        InputError: a file is damaged, or the partition's name is taken by one that training has not
            made.
        OutputError: the partition can't be written.
    """
    kind = fingerprint = ""
    with agreed(comm, "open graph"):
        if comm.rank == 0:
            with Reader(source, None) as reader:
                kind = reader.text("format")
                fingerprint = reader.text("fingerprint") if kind == GRAPH else ""
    kind, fingerprint = comm.broadcast((kind, fingerprint), where="open graph")
    if kind != GRAPH or comm.size == 1:
        return source
    from hpcgnn.partition.pipeline import default_file, partition_graph  # slow to import

    target = default_file(source, comm.size)
    method = config.training.method
    found = _is_partition_of(target, fingerprint, method)
    if comm.broadcast(found, where="open partition"):
        if comm.rank == 0:
            display.note(f"partition: {target} (made earlier)")
        return target
    with agreed(comm, "open partition"):
        if comm.rank == 0:
            _check_own(target, method)
    report = partition_graph(
        comm,
        source,
        comm.size,
        method=method,
        out=target,
        seed=config.training.seed,
        force=True,
        command="train",
        display=display,
    )
    if comm.rank == 0:
        display.note(
            f"partition: {target}, by {report['method']} in {report['seconds']:.1f} s; it is kept"
        )
    return target


def _check_own(path: Path, method: str) -> None:
    """Refuse to replace a partition that was not made by training itself."""
    if not os.path.lexists(path):
        return
    try:
        with Reader(path, PARTITION) as reader:
            own = reader.json("config").get("command") == "train"
    except InputError:
        own = False
    if not own:
        raise InputError(
            f"is not a partition of this graph made by training{_by(method)}: train on a partition "
            "file instead of the graph, or remove this one",
            file=path,
        )


def _by(method: str) -> str:
    return "" if method == "auto" else f", nor one by {method}"


def _is_partition_of(path: Path, fingerprint: str, method: str) -> bool:
    if not path.exists():
        return False
    try:
        with Reader(path, PARTITION) as reader:
            same_graph = reader.text("graph_fingerprint") == fingerprint
            return same_graph and method in ("auto", reader.text("method"))
    except InputError:  # not usable
        return False
