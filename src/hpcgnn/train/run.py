"""A run: its directory, the checkpoint it resumes from, and its starts in starts.jsonl."""

from __future__ import annotations

import json
import platform
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, OutputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.storage.read.partition_file import PartitionFile
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import PARTITION
from hpcgnn.system import asked_threads, now
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.resume import newest_of_run
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config
from hpcgnn.train.journal import check_regular, json_lines
from hpcgnn.version import __version__

_PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "cupy-cuda12x", "cupy-cuda13x")
_MOST_HOSTS = 64  # listed one by one


@dataclass(frozen=True)
class Run:
    """The parts of a `Trainer` besides graph, model and task.

    Attributes:
        found: the checkpoint to resume from, with its file.
        model_file: entry in checkpoints about the file of a user's model.
    """

    directory: Path
    config: Config
    store: CheckpointStore
    found: tuple[Path, Checkpoint] | None
    model_file: dict[str, Any]

    @staticmethod
    def open(
        directory: Path,
        graph: PartitionedGraph,
        config: Config,
        *,
        resume: bool,
        model_file: dict[str, Any] | None = None,
    ) -> Run:
        """Make the checkpoint folder, and find the newest checkpoint to `resume` from; collective.

        Raises:
            InputError: the checkpoint is of another run.
        """
        store = CheckpointStore(directory / "checkpoints", graph.comm, config.checkpoints.keep)
        found = newest_of_run(store, graph, config) if resume else None
        return Run(directory, config, store, found, model_file or {})


def note_start(
    run_dir: Path,
    graph: PartitionedGraph,
    *,
    from_epoch: int,
    source: Path | None = None,
    parts: Path | None = None,
) -> None:
    """Append a line about this start to starts.jsonl; collective.

    Args:
        from_epoch: number of epochs trained by earlier starts.
        source: the graph or partition file that was asked for.
        parts: the file that the parts were loaded from.

    Raises:
        OutputError: the line can't be written.
        InputError: the file's name is taken by something that is not a file.
    """
    comm = graph.comm
    hosts = Counter(comm.allgather(socket.gethostname(), where="hosts"))
    path = run_dir / "starts.jsonl"
    with agreed(comm, "starts.jsonl"):
        if comm.rank != 0:
            return
        line = {
            "time": now(),
            "from_epoch": from_epoch,
            "ranks": comm.size,
            "threads": asked_threads(),
            "hosts": dict(list(hosts.items())[:_MOST_HOSTS]),
            "device": str(graph.node_ids.device),
            "transport": graph.ring.transport.name,
            "releases": _releases(),
            "system": platform.platform(),
            "graph": {
                "fingerprint": graph.graph_fingerprint,
                "nodes": graph.num_nodes,
                "edges": graph.num_edges,
                **({} if source is None else {"file": str(source)}),
            },
            "partition": {} if parts is None else _quality(parts),
        }
        try:
            check_regular(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"can't be written: {error.strerror}", file=path) from None


def last_source(run_dir: Path) -> Path:
    """Return the graph or partition file of the latest start.

    Raises:
        InputError: no start names one.
    """
    path, found = run_dir / "starts.jsonl", ""
    with suppress(FileNotFoundError):
        for line in json_lines(path):
            entries = [(line or {}).get(name) for name in ("partition", "graph")]
            files = [entry.get("file") for entry in entries if isinstance(entry, dict)]
            found = next((file for file in reversed(files) if isinstance(file, str)), found)
    if not found:
        raise InputError(
            "doesn't record the graph it was trained on: name the graph or partition file",
            file=run_dir,
        )
    return Path(found)


def _releases() -> dict[str, str]:
    found = {name: release for name in _PACKAGES if (release := _release_of(name)) is not None}
    return {"hpcgnn": __version__, "python": platform.python_version(), **found}


@cache
def _release_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _quality(path: Path) -> dict[str, Any]:
    """Return the quality of a partition file; empty for a graph file."""
    with Reader(path, None) as reader:
        if reader.text("format") != PARTITION:
            return {}
    with PartitionFile(path) as file:
        header = file.header
        return {"file": str(path), "method": header["method"], **header["report"]}
