"""Checkpoints: everything needed to go on as if nothing had happened, in one HDF5 file.

    model/<parameter>                  parameters and buffers
    optimizer/<index>/<key>            optimizer state of each parameter
    average/<parameter>                moving average of the parameters
    plain                              JSON: state of learning rates, callbacks, optimizer; type and
                                       shape of each of the arrays above
    sharded/<part>/ids, .../<name>     rows that only one rank owns (learned embeddings), with the
                                       node of each row
Attributes: epoch, config, progress, task, fingerprints of graph and content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.storage.checks import MASK, fingerprint, to_hex
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import CHECKPOINT, VERSION
from hpcgnn.storage.write import atomic
from hpcgnn.train.checkpoint.arrays import check_arrays, check_finite, form_of
from hpcgnn.train.config import Config, from_mapping

MAX_EPOCH = 1 << 40
_TYPES = ("float32", "float64", "int64", "uint8", "bool")
_GROUPS = ("model/", "optimizer/", "average/", "sharded/")
_PLAIN = "plain"
_FORMS = "arrays"  # among the plain values
_MOST_PLAIN = 64 << 20


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
    model_file: dict[str, Any] = field(default_factory=dict)  # `ModelFile.stored`, of the user's
    state: dict[str, Any] = field(default_factory=dict)  # plain values

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
            **({"model_file": self.model_file} if self.model_file else {}),
            "fingerprint": to_hex(content),
        }

    def datasets(self) -> dict[str, np.ndarray]:
        """`arrays`, and the plain values as one of them."""
        state = {**self.state, _FORMS: {name: form_of(a) for name, a in self.arrays.items()}}
        text = json.dumps(state, sort_keys=True, allow_nan=False).encode()
        return {**self.arrays, _PLAIN: np.frombuffer(text, np.uint8)}


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint without sharded rows; one rank, no messages.

    Raises:
        OutputError: it can't be written; what was there before is intact.
    """
    arrays = checkpoint.datasets()
    content = _fingerprint(arrays)
    with atomic.create(path) as output:
        _put(output, arrays)
        output.set_attributes(checkpoint.attributes(content))


def write_sharded(path: Path, checkpoint: Checkpoint, comm: Communicator) -> None:
    """Write a checkpoint whose `sharded` rows are added by their owners in turn; collective.

    Raises:
        OutputError: as `write`, on all ranks.
    """
    own = {f"sharded/{comm.rank:05d}/{name}": rows for name, rows in checkpoint.sharded.items()}
    prints = comm.allgather(_fingerprint(own), where="checkpoint fingerprint")
    arrays = checkpoint.datasets()
    content = (_fingerprint(arrays) + sum(prints)) & MASK
    with ExitStack() as stack:
        temporary = path
        with agreed(comm, "checkpoint name"):
            if comm.rank == 0:
                temporary = stack.enter_context(atomic.claim(path))
        temporary = comm.broadcast(temporary, where="checkpoint name")
        mode = "w" if comm.rank == 0 else "r+"
        with comm.in_turn("checkpoint"), atomic.write(temporary, mode, shown=path) as output:
            _put(output, own)
            if comm.rank == 0:
                _put(output, arrays)
                output.set_attributes(checkpoint.attributes(content))
        with agreed(comm, "checkpoint name"):
            if comm.rank == 0:
                atomic.publish(temporary, path)


def read_epoch(path: str | Path) -> int:
    """The epoch of a checkpoint, whose content isn't looked at. Raises InputError as `read`."""
    with Reader(path, CHECKPOINT) as reader:
        return reader.integer("epoch", 0, MAX_EPOCH)


def read(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint, sharded rows excepted.

    Raises:
        InputError: missing, damaged, no checkpoint, or one that contradicts itself.
    """
    with Reader(path, CHECKPOINT) as reader:
        epoch = reader.integer("epoch", 0, MAX_EPOCH)
        progress = reader.json("progress")
        try:
            config = from_mapping(reader.json("config"), path)
            _check_progress(progress, epoch, path)
        except RecursionError:  # in showing what is wrong
            raise InputError("its attributes are nested too deeply", file=path) from None
        datasets = reader.walk()
        _check_size(config, {found["name"]: tuple(found["shape"]) for found in datasets}, path)
        arrays, content = {}, 0
        for dataset in datasets:
            name = dataset["name"]
            column = reader.column(name, _TYPES, tuple(dataset["shape"]))
            content += column.fingerprint(0, len(column))
            if not name.startswith("sharded/"):
                arrays[name] = column.read()
        if to_hex(content) != reader.text("fingerprint"):
            raise InputError("the content doesn't match its checksum: damaged", file=path)
        state = _plain(arrays.pop(_PLAIN, None), path)
        checkpoint = Checkpoint(
            epoch=epoch,
            config=config,
            graph_fingerprint=reader.text("graph_fingerprint"),
            num_parts=reader.integer("num_parts", 1, 1 << 31),
            progress=progress,
            arrays=arrays,
            task=reader.json("task") if "task" in reader.attributes else {},
            model_file=reader.json("model_file") if "model_file" in reader.attributes else {},
            state=state,
        )
    check_arrays(arrays, config, checkpoint.task, state.pop(_FORMS, None), path)
    return checkpoint


def _plain(content: np.ndarray | None, path: str | Path) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        if content.dtype != np.uint8 or content.size > _MOST_PLAIN:
            raise ValueError
        state = json.loads(content.tobytes())
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or not all(isinstance(e, dict) for e in state.values()):
        raise InputError("must be a JSON object of objects", file=path, dataset=_PLAIN)
    return state


def _check_size(config: Config, shapes: dict[str, tuple[int, ...]], path: str | Path) -> None:
    """Refuse settings for which a model would be built that is far larger than these arrays."""
    for name in shapes:
        loose = name.startswith("sharded/") and name.count("/") != 2  # of no part
        if loose or (not name.startswith(_GROUPS) and name != _PLAIN):
            raise InputError("is no dataset of a checkpoint", file=path, dataset=name)
    if config.model.own:  # which is built by nobody but its owner
        return
    held = sum(name.startswith("model/") for name in shapes)
    lengths = {n for name, s in shapes.items() if not name.startswith("optimizer/") for n in s}
    model = config.model
    deep = model.layers > 1 or model.head == "linear"
    wrong = {
        "layers": model.layers > held,  # every layer has parameters
        "hidden": deep and model.hidden not in lengths,
        "embedding": model.embedding > 0 and model.embedding not in lengths,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(
                f"its configuration doesn't fit its {held} parameters: --{name}",
                file=path,
                value=getattr(model, name),
            )


def _check_progress(progress: dict[str, Any], epoch: int, path: str | Path) -> None:
    """`best` and `test_at_best` are None or scores, `best_epoch` is an epoch until then."""
    for name in ("best", "test_at_best"):
        score = progress.get(name, "nothing")
        number = isinstance(score, int | float) and not isinstance(score, bool)
        undefined = name == "test_at_best" and score != score  # without test nodes
        if not (score is None or undefined or (number and math.isfinite(score))):
            raise InputError(
                f"{name} must be null or a score",
                file=path,
                dataset="progress",
                value=score,
            )
    best = progress.get("best_epoch")
    least = 0 if progress["best"] is None else 1
    if type(best) is not int or not least <= best <= epoch:
        raise InputError(
            f"best_epoch must be an epoch in {least} .. {epoch}",
            file=path,
            dataset="progress",
            value=best,
        )
    for name, value in progress.items():
        if not isinstance(value, str | int | float | None):
            raise InputError(f"{name} must be a number or text", file=path, dataset="progress")


def read_sharded(path: str | Path, node_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The sharded rows of these nodes, whichever ranks wrote them.

    Raises:
        InputError: a node has no row or two, a row isn't finite, or parts hold different arrays.
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
            places, counts = np.unique(target, return_counts=True)
            twice = places[(counts > 1) | seen[places]]
            if len(twice):
                raise InputError(
                    "has two learned embeddings for a node",
                    file=path,
                    dataset=group,
                    value=int(node_ids[twice[0]]),
                )
            seen[target] = True
            names = [name for name in reader.names(group) if name != "ids"]
            if found and names != list(found):
                raise InputError("other arrays than in the parts before", file=path, dataset=group)
            for name in names:
                width = found[name].shape[1] if name in found else None
                dtypes = (found[name].dtype.name,) if name in found else _TYPES
                column = reader.column(f"{group}/{name}", dtypes, (len(ids), width))
                held = found.setdefault(
                    name, np.zeros((len(node_ids), column.shape[1]), column.dtype)
                )
                rows = column.read()
                check_finite(rows, path, f"{group}/{name}")
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
