"""Checkpoints: all that is needed to continue as if never interrupted, in one HDF5 file.

    model/<parameter>                  parameters and buffers
    optimizer/<parameter>/<key>        optimizer state of each parameter
    average/<parameter>                moving average of the parameters
    plain                              JSON: state of learning rates, callbacks, optimizer; type and
                                       shape of each array, and of one row of those below
    sharded/<part>/ids, .../<name>     rows that only one rank owns (learned embeddings), with the
                                       node of each row
Attributes: epoch, config, progress, task, names of node types and relations, fingerprints of graph
and content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.kinds import KindNames
from hpcgnn.storage.checks import nesting
from hpcgnn.storage.fingerprint import MASK, fingerprint, to_hex
from hpcgnn.storage.read.partition_file import MAX_PARTS
from hpcgnn.storage.read.reader import DEEPEST, Reader
from hpcgnn.storage.schema import CHECKPOINT, NEWEST_VERSION, VERSION
from hpcgnn.storage.write import atomic
from hpcgnn.tasks.settings import KINDS, limits
from hpcgnn.train.checkpoint.arrays import check_arrays, check_stored_task, form_of
from hpcgnn.train.checkpoint.rows import (
    GROUP,
    Forms,
    check_forms,
    check_parts,
    forms_of_rows,
    stored_forms,
)
from hpcgnn.train.config import Config, from_mapping
from hpcgnn.train.journal import is_number

MAX_EPOCH = 1 << 40
_TYPES = ("float32", "float64", "int64", "uint8", "bool")
_GROUPS = ("model/", "optimizer/", "average/", GROUP)
_PLAIN = "plain"
_FORMS, _ROWS = "arrays", "rows"  # keys among the plain values
_MOST_PLAIN = 64 << 20
_ROUNDING = 1e-6  # rounding error of a metric
_COMPLETE = 2  # from this version on, it stores its task and the forms of its arrays


@dataclass
class Checkpoint:
    """The state of training after an epoch, as on any rank.

    `arrays` are by dataset name, `sharded` are of this rank only. A checkpoint that was read has
    the forms of all sharded `rows`, see `stored_forms`, but not the rows.
    """

    epoch: int
    config: Config
    graph_fingerprint: str
    num_parts: int
    progress: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sharded: dict[str, np.ndarray] = field(default_factory=dict)
    rows: Forms = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)  # `Task.stored`, empty in older files
    model_file: dict[str, Any] = field(default_factory=dict)  # `ModelFile.stored`, of the user's
    kinds: KindNames = field(default_factory=KindNames)  # of the graph, unknown in older files
    weighted: bool | None = None  # whether the graph's edges had weights; None in older files
    state: dict[str, Any] = field(default_factory=dict)  # plain values

    def attributes(self, content: int) -> dict[str, int | str | dict]:
        return {
            "format": CHECKPOINT,
            "version": _COMPLETE if self.task else VERSION,
            "epoch": self.epoch,
            "config": self.config.to_json(),
            "graph_fingerprint": self.graph_fingerprint,
            "num_parts": self.num_parts,
            "progress": self.progress,
            **({"task": self.task} if self.task else {}),
            **({"model_file": self.model_file} if self.model_file else {}),
            **({"kinds": kinds} if (kinds := self.kinds.stored()) else {}),
            **({} if self.weighted is None else {"weighted": int(self.weighted)}),
            "fingerprint": to_hex(content),
        }

    def datasets(self) -> dict[str, np.ndarray]:
        """Return `arrays`, and the plain values as one more array."""
        forms = {name: form_of(array) for name, array in self.arrays.items()}
        state = {**self.state, _FORMS: forms, _ROWS: forms_of_rows(self.sharded)}
        text = json.dumps(state, sort_keys=True, allow_nan=False).encode()
        return {**self.arrays, _PLAIN: np.frombuffer(text, np.uint8)}


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint without sharded rows; by one rank, without messages.

    Raises:
        OutputError: it can't be written; a file that was there before is intact.
    """
    arrays = checkpoint.datasets()
    content = _fingerprint(arrays)
    with atomic.create(path) as output:
        _put(output, arrays)
        output.set_attributes(checkpoint.attributes(content))


def write_sharded(path: Path, checkpoint: Checkpoint, comm: Communicator) -> None:
    """Write a checkpoint to which the owners of `sharded` rows add these in turn; collective.

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
    """Return a checkpoint's epoch without reading its content; raises InputError as `read`."""
    with Reader(path, CHECKPOINT) as reader:
        return reader.integer("epoch", 0, MAX_EPOCH)


def read_best_epoch(path: str | Path) -> int:
    """Return the best epoch until a checkpoint, 0 without; raises InputError as `read`."""
    with Reader(path, CHECKPOINT) as reader:
        best = reader.json("progress").get("best_epoch")
    return best if type(best) is int else 0


def read(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint, except its sharded rows.

    Raises:
        InputError: it is missing, damaged, not a checkpoint, or contradicts itself.
    """
    with Reader(path, CHECKPOINT) as reader:
        epoch = reader.integer("epoch", 0, MAX_EPOCH)
        complete = reader.integer("version", 1, NEWEST_VERSION) >= _COMPLETE
        progress = reader.json("progress")
        task = reader.json("task") if complete or "task" in reader.attributes else {}
        older = {} if complete else {"evaluated": epoch, "waited": 0}
        config = from_mapping(reader.json("config"), path)
        _check_progress(older | progress, epoch, _bounds(config, task), path)
        if epoch > config.training.epochs:
            text = f"is after epoch {epoch}, but it was trained with --epochs"
            raise InputError(text, file=path, value=config.training.epochs)
        datasets = reader.walk()
        _check_size(config, {found["name"]: tuple(found["shape"]) for found in datasets}, path)
        rows = stored_forms(datasets, path)
        num_parts = reader.integer("num_parts", 1, MAX_PARTS)
        check_parts(datasets, num_parts, path)
        arrays, content = {}, 0
        for dataset in datasets:
            name = dataset["name"]
            column = reader.column(name, _TYPES, tuple(dataset["shape"]))
            content += column.fingerprint(0, len(column))
            if not name.startswith(GROUP):
                arrays[name] = column.read()
        if to_hex(content) != reader.text("fingerprint"):
            raise InputError("is damaged: the content doesn't match its checksum", file=path)
        state = _plain(arrays.pop(_PLAIN, None), path)
        checkpoint = Checkpoint(
            epoch=epoch,
            config=config,
            graph_fingerprint=_graph_fingerprint(reader),
            num_parts=num_parts,
            progress=progress,
            arrays=arrays,
            rows=rows,
            task=task,
            model_file=reader.json("model_file") if "model_file" in reader.attributes else {},
            kinds=KindNames.of(reader.json("kinds") if "kinds" in reader.attributes else {}),
            weighted=_weighted(reader),
            state=state,
        )
    if complete and not {_ROWS, _FORMS} <= state.keys():
        raise InputError("must give the form of each array", file=path, dataset=_PLAIN)
    if complete:
        check_stored_task(task, arrays, path, of_program=config.model.own)
    written = state.pop(_ROWS, rows)
    if written != rows:
        raise InputError(
            "has different rows of nodes than it was written with",
            file=path,
            dataset=", ".join(sorted(written.keys() ^ rows.keys())) or next(iter(rows)),
        )
    check_arrays(arrays, config, checkpoint.task, state.pop(_FORMS, None), path)
    check_forms(rows, path, built_in=not config.model.own)
    return checkpoint


def _graph_fingerprint(reader: Reader) -> str:
    """Return the graph's fingerprint; empty if the graph was made in memory."""
    text = reader.text("graph_fingerprint")
    if re.fullmatch("([0-9a-f]{16})?", text) is None:
        raise InputError(
            "attribute graph_fingerprint must be 16 hexadecimal digits",
            file=reader.path,
            value=text,
        )
    return text


def _weighted(reader: Reader) -> bool | None:
    return bool(reader.integer("weighted", 0, 1)) if "weighted" in reader.attributes else None


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
    if nesting(state, DEEPEST) > DEEPEST:
        raise InputError("is nested too deeply", file=path, dataset=_PLAIN)
    return state


def _check_size(config: Config, shapes: dict[str, tuple[int, ...]], path: str | Path) -> None:
    """Refuse settings whose model would be far larger than the stored arrays."""
    for name in shapes:
        loose = name.startswith(GROUP) and name.count("/") != 2  # not in a part
        if loose or (not name.startswith(_GROUPS) and name != _PLAIN):
            raise InputError("is not a dataset of a checkpoint", file=path, dataset=name)
    if config.model.own:  # not built from the checkpoint's settings
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


def _bounds(config: Config, task: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and largest possible value of the monitored score, if known."""
    chosen = config.training.monitor
    name = task.get("metric") if chosen == "auto" else chosen
    if not isinstance(name, str) or task.get("kind") not in KINDS:
        return -math.inf, math.inf
    return limits(name)


def _check_progress(
    progress: dict[str, Any], epoch: int, bounds: tuple[float, float], path: str | Path
) -> None:
    """Check that `best` and `test_at_best` are None or scores, and epochs ascend up to `epoch`.

    Args:
        bounds: the smallest and largest possible score.
    """
    least, most = bounds

    def refuse(what: str, name: str) -> NoReturn:
        value = progress.get(name, "nothing")
        raise InputError(f"{name} must be {what}", file=path, dataset="progress", value=value)

    for name in ("best", "test_at_best"):
        score = progress.get(name, "nothing")
        undefined = name == "test_at_best" and score != score  # without test nodes
        if score is None or undefined:
            continue
        if not is_number(score):
            refuse("null or a score", name)
        if not least - _ROUNDING <= score <= most + _ROUNDING:
            refuse(f"a score in {least:g} .. {most:g}", name)
    first, last = (0, 0) if progress["best"] is None else (1, epoch)
    for name in ("best_epoch", "evaluated"):
        value = progress.get(name)
        if type(value) is not int or not first <= value <= last:
            refuse(f"an epoch in {first} .. {last}", name)
        first, last = value, epoch
    most_waited = first - progress["best_epoch"] if progress["best_epoch"] else 0
    waited = progress.get("waited")
    if type(waited) is not int or not 0 <= waited <= most_waited:
        refuse(f"a number of epochs in 0 .. {most_waited}", "waited")
    for name, value in progress.items():
        if not isinstance(value, str | int | float | None):
            raise InputError(f"{name} must be a number or text", file=path, dataset="progress")


def _put(output: atomic.OutputFile, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        dataset = output.dataset(name, array.dtype, array.shape)
        if array.size:
            dataset[...] = array


def _fingerprint(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(fingerprint(name, array) for name, array in arrays.items()) & MASK
