"""A checkpoint's parameters as a plain state_dict, in a .safetensors or .pt file."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import CHECKPOINT, WEIGHTS
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.outputs import check_output
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.writing import best_or_last
from hpcgnn.train.state_names import outer_names

ENDINGS = (".safetensors", ".pt")
_OF_TASK = "task:"  # what a task learns beside the model, such as a decoder of pairs
_LONGEST_HEADER = 100_000_000  # of safetensors


@dataclass(frozen=True)
class Export:
    """What was written: `names` from the checkpoint's to the file's; tensors' total `bytes`."""

    checkpoint: Path
    epoch: int
    names: dict[str, str]
    bytes: int


def export(place: Path, out: Path, *, force: bool = False) -> Export:
    """Write the parameters and buffers of a checkpoint; one process.

    Args:
        place: a checkpoint, or a run directory: the best checkpoint, or the last without one.
        out: .safetensors or .pt.

    Raises:
        InputError: no checkpoint, another ending, or something in the place of `out`.
        OutputError: it can't be written.
    """
    if out.suffix not in ENDINGS:
        raise InputError(f"must end in {' or '.join(ENDINGS)}", file=out)
    path = best_or_last(place)
    check_output(out, WEIGHTS, force=force, inputs=[path], read_format=format_of_weights)
    epoch, own = _state(path)
    names = outer_names(own)
    state = {names[name]: value for name, value in own.items()}
    if len(state) != len(own):
        raise InputError("has two parameters of one name", file=path)
    for name in list(state):
        if name.endswith(".module.running_mean"):  # which PyTorch counts, and here nobody reads
            count = name.replace("running_mean", "num_batches_tracked")
            state[count] = torch.zeros((), dtype=torch.int64)
    _save(state, out)
    return Export(path, epoch, names, sum(value.nbytes for value in state.values()))


def _state(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The epoch, and parameters and buffers by their names here; averages where there are some."""
    checkpoint = files.read(path)
    state = {}
    for group in ("model/", "average/"):
        for name, array in checkpoint.arrays.items():
            if name.startswith(group):
                state[name.removeprefix(group)] = torch.from_numpy(array)
    state |= _learned_rows(path)
    state = {name: value for name, value in state.items() if not name.startswith(_OF_TASK)}
    if not state:
        raise InputError("has no parameters", file=path)
    return checkpoint.epoch, state


def _learned_rows(path: Path) -> dict[str, Tensor]:
    """Embeddings of all nodes in the order of graph.h5, whichever ranks wrote them."""
    ids = [np.empty(0, np.int64)]
    with Reader(path, CHECKPOINT) as reader:
        for part in reader.names("sharded"):
            ids.append(reader.column(f"sharded/{part}/ids", ("int64",), (None,)).read())
    count = sum(map(len, ids))
    found = files.read_sharded(path, np.arange(count)) if count else {}
    return {
        name.removeprefix(group): torch.from_numpy(rows)
        for group in ("model.", "average.")
        for name, rows in found.items()
        if name.startswith(group)
    }


def _save(state: dict[str, Tensor], out: Path) -> None:
    if out.suffix == ".pt":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    else:
        try:
            import safetensors.torch
        except ImportError:
            raise InputError(
                "needs safetensors: pip install safetensors, or name a .pt file", file=out
            ) from None
        content = safetensors.torch.save(state, metadata={"format": "pt"})
    with atomic.claim(out) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise atomic.write_error(out, error) from None
        atomic.publish(temporary, out)


def format_of_weights(path: Path) -> str | None:
    """`schema.WEIGHTS` where the file looks like one of tensors by name."""
    try:
        if path.suffix == ".pt":
            return WEIGHTS if zipfile.is_zipfile(path) else None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return WEIGHTS if 2 <= length < _LONGEST_HEADER and file.read(1) == b"{" else None
    except OSError:
        return None
