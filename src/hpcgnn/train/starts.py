"""starts.jsonl of a run directory: where and on what each start of a run computed."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, OutputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.storage.read.partition_file import PartitionFile
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import PARTITION
from hpcgnn.system import now
from hpcgnn.train.journal import check_regular, json_lines
from hpcgnn.version import __version__

_PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "cupy-cuda12x", "cupy-cuda13x")
_MOST_HOSTS = 64  # named one by one


def note_start(
    run_dir: Path,
    graph: PartitionedGraph,
    *,
    from_epoch: int,
    source: Path | None = None,
    parts: Path | None = None,
) -> None:
    """Add a line about this start; collective.

    Args:
        from_epoch: epochs that earlier starts have trained.
        source: the graph or partition file that was asked for.
        parts: the file that the parts were loaded from.

    Raises:
        OutputError: it can't be written.
        InputError: something else than a file has the name.
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
            "threads": int(os.environ.get("OMP_NUM_THREADS") or 0) or None,
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
    """The graph or partition file of the newest start.

    Raises:
        InputError: none is known.
    """
    path, found = run_dir / "starts.jsonl", ""
    with suppress(FileNotFoundError):
        for line in json_lines(path):
            entries = [(line or {}).get(name) for name in ("partition", "graph")]
            files = [entry.get("file") for entry in entries if isinstance(entry, dict)]
            found = next((file for file in reversed(files) if isinstance(file, str)), found)
    if not found:
        raise InputError(
            "doesn't say on which graph it was trained: name the graph or partition file",
            file=run_dir,
        )
    return Path(found)


def _releases() -> dict[str, str]:
    found = {"hpcgnn": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _quality(path: Path) -> dict[str, Any]:
    """Of a partition file; a graph that one rank trains on has none."""
    with Reader(path, None) as reader:
        if reader.text("format") != PARTITION:
            return {}
    with PartitionFile(path) as file:
        header = file.header
        return {"file": str(path), "method": header["method"], **header["report"]}
