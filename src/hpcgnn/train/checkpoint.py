"""Checkpoints: everything needed to go on as if nothing had happened, in one HDF5 file.

    model/<parameter>                  parameters and buffers
    optimizer/<index>/<key>            optimizer state of each parameter
    sharded/<part>/ids, .../<name>     rows that only one rank owns (learned embeddings), with the
                                       node of each row
Attributes: epoch, config, progress, task, fingerprints of graph and content.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.storage import atomic
from hpcgnn.storage.fingerprint import MASK, fingerprint, to_hex
from hpcgnn.storage.reader import Reader
from hpcgnn.storage.schema import CHECKPOINT, VERSION
from hpcgnn.train.config import Config

_TYPES = ("float32", "float64", "int64", "uint8", "bool")


@dataclass
class Checkpoint:
    """A moment of training, on any rank; `arrays` by dataset name, `sharded` of this rank only."""

    epoch: int
    config: Config
    graph_fingerprint: str
    num_parts: int
    progress: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sharded: dict[str, np.ndarray] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)  # `Task.stored`, empty in older files

    def attributes(self, content: int) -> dict[str, int | str | dict]:
        return {
            "format": CHECKPOINT,
            "version": VERSION,
            "epoch": self.epoch,
            "config": self.config.to_json(),
            "graph_fingerprint": self.graph_fingerprint,
            "num_parts": self.num_parts,
            "progress": self.progress,
            **({"task": self.task} if self.task else {}),
            "fingerprint": to_hex(content),
        }


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint without sharded rows; one rank, no messages.

    Raises:
        OutputError: it can't be written; what was there before is intact.
    """
    content = _fingerprint(checkpoint.arrays)
    with atomic.create(path) as output:
        _put(output, checkpoint.arrays)
        output.set_attributes(checkpoint.attributes(content))


def write_sharded(path: Path, checkpoint: Checkpoint, comm: Communicator) -> None:
    """Write a checkpoint whose `sharded` rows are added by their owners in turn; collective.

    Raises:
        OutputError: as `write`, on all ranks.
    """
    own = {f"sharded/{comm.rank:05d}/{name}": rows for name, rows in checkpoint.sharded.items()}
    prints = comm.allgather(_fingerprint(own), where="checkpoint fingerprint")
    content = (_fingerprint(checkpoint.arrays) + sum(prints)) & MASK
    with ExitStack() as stack:
        temporary, error = path, None
        try:
            if comm.rank == 0:
                temporary = stack.enter_context(atomic.claim(path))
        except HpcgnnError as caught:
            error = caught
        comm.agree(error, where="checkpoint name")
        temporary = comm.broadcast(temporary, where="checkpoint name")
        with comm.in_turn(where="checkpoint"):
            try:
                with atomic.write(temporary, "w" if comm.rank == 0 else "r+", shown=path) as output:
                    _put(output, own)
                    if comm.rank == 0:
                        _put(output, checkpoint.arrays)
                        output.set_attributes(checkpoint.attributes(content))
            except HpcgnnError as caught:
                error = caught
        comm.agree(error, where="checkpoint")
        if comm.rank == 0:
            atomic.publish(temporary, path)


def read(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint, sharded rows excepted.

    Raises:
        InputError: missing, damaged, or no checkpoint.
    """
    with Reader(path, CHECKPOINT) as reader:
        config = Config.from_json(reader.text("config"), path)
        arrays, content = {}, 0
        for dataset in reader.walk():
            name = dataset["name"]
            column = reader.column(name, _TYPES, tuple(dataset["shape"]))
            content += column.fingerprint(0, len(column))
            if not name.startswith("sharded/"):
                arrays[name] = column.read()
        if to_hex(content) != reader.text("fingerprint"):
            raise InputError("the content doesn't match its checksum: damaged", file=path)
        return Checkpoint(
            epoch=reader.integer("epoch", 0, 1 << 40),
            config=config,
            graph_fingerprint=reader.text("graph_fingerprint"),
            num_parts=reader.integer("num_parts", 1, 1 << 31),
            progress=reader.json("progress"),
            arrays=arrays,
            task=reader.json("task") if "task" in reader.attributes else {},
        )


def read_sharded(path: str | Path, node_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The sharded rows of these nodes, whichever ranks wrote them.

    Raises:
        InputError: a node has no row.
    """
    order = np.argsort(node_ids)
    found: dict[str, np.ndarray] = {}
    seen = np.zeros(len(node_ids), bool)
    with Reader(path, CHECKPOINT) as reader:
        for part in reader.names("sharded"):
            group = f"sharded/{part}"
            ids = reader.column(f"{group}/ids", ("int64",), (None,)).read()
            place = np.searchsorted(node_ids[order], ids)
            inside = place < len(node_ids)
            inside[inside] = node_ids[order][place[inside]] == ids[inside]
            target = order[place[inside]]
            seen[target] = True
            for name in reader.names(group):
                if name != "ids":
                    rows = reader.column(f"{group}/{name}", _TYPES, (len(ids), None)).read()
                    held = found.setdefault(
                        name, np.zeros((len(node_ids), rows.shape[1]), rows.dtype)
                    )
                    held[target] = rows[inside]
    if not seen.all():
        missing = int(node_ids[~seen][0])
        raise InputError("has no learned embedding for a node", file=path, value=missing)
    return found


def _put(output: atomic.OutputFile, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        dataset = output.dataset(name, array.dtype, array.shape)
        if array.size:
            dataset[...] = array


def _fingerprint(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(fingerprint(name, array) for name, array in arrays.items()) & MASK
