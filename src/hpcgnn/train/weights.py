"""Weights by name in .safetensors and .pt files: reading initial ones, exporting a checkpoint's."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed, require_same_file
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.nn.linear import is_sharded
from hpcgnn.storage.schema import WEIGHTS
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.atomic import check_output
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.rows import read_every
from hpcgnn.train.checkpoint.store import best_or_last
from hpcgnn.train.checkpoint.widths import check_built_in
from hpcgnn.train.learned import OF_TASK
from hpcgnn.version import __version__

_STACK = "stack."
_GIN = re.compile(r"(convs\.\d+\.nn\.)(\d+)(\.\w+)")
_NORM = re.compile(r"(norms\.\d+\.)(\w+)")
_MOST_NAMES = 1 << 20
_SHOWN = 8
_NO_ARCHIVE = (zipfile.BadZipFile, ValueError, NotImplementedError)
_UNUSED = "num_batches_tracked"  # of PyTorch's batch norm; not used here
ENDINGS = (".safetensors", ".pt")
_LONGEST_HEADER = 100_000_000  # bytes, in safetensors
_SIGN = "hpcgnn"  # marks a file as ours, so that it may be replaced


def outer_names(names: Collection[str]) -> dict[str, str]:
    """Return PyTorch Geometric's name of each parameter and buffer of a model, by our name."""
    built_in = any(name.startswith(f"{_STACK}convs.") for name in names)
    return {name: _outer(name, names) if built_in else name for name in names}


def _outer(name: str, names: Collection[str]) -> str:
    if not name.startswith(_STACK):
        return name
    inner = name.removeprefix(_STACK)
    if inner.startswith("head."):
        return inner.replace("head.", "lin.", 1)
    if match := _GIN.fullmatch(inner):
        return f"{match[1]}lins.{int(match[2]) // 2}{match[3]}"  # every second is an activation
    if (match := _NORM.fullmatch(inner)) and f"{_STACK}{match[1]}running_mean" in names:
        return f"{match[1]}module.{match[2]}"
    return inner


@dataclass(frozen=True)
class Differences:
    """Names, as in the file, that differ between a weight file and the model."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]

    def lines(self, path: Path) -> list[str]:
        """Return lines that tell the user what differs, if anything."""
        named = (
            (self.missing, "not in the file, so they are newly initialised"),
            (self.reshaped, "of another shape in the file, so they are newly initialised"),
            (self.unknown, "not in this model, so they are ignored"),
        )
        return [f"{path}: {_listed(names)}: {what}" for names, what in named if names]


def start_from(
    model: torch.nn.Module, node_ids: Tensor, path: Path, comm: Communicator
) -> Differences:
    """Fill the model's parameters and buffers with those of the file that fit; collective.

    Names may be ours or PyTorch Geometric's (`outer_names`). Learned embeddings are `[N, D]` in the
    order of graph.h5; each rank takes its own rows.

    Raises:
        InputError: there is no such file, it isn't safe to read, has values that are not finite or
            of another type, differs between ranks, or fits nothing in the model.
    """
    given: dict[str, Tensor] = {}
    require_same_file(comm, path, "weights to start from")
    with agreed(comm, "read the first weights"):
        given = read_weights(path)
    with agreed(comm, "fit the first weights"), torch.no_grad():
        return _fill(model, node_ids, given, path)


def _fill(
    model: torch.nn.Module, node_ids: Tensor, given: Mapping[str, Tensor], path: Path
) -> Differences:
    own = model.state_dict()
    sharded = {name for name, value in model.named_parameters() if is_sharded(value)}
    missing, reshaped, used = [], [], set()
    for name, outer in outer_names(own).items():
        found = next((known for known in (outer, name) if known in given), None)
        if found is None:
            missing.append(outer)
            continue
        used.add(found)
        value, target = given[found], own[name]
        if name in sharded and value.dim() == 2 and value.shape[1:] == target.shape[1:]:
            if len(node_ids) and len(value) <= int(node_ids.max()):
                reshaped.append(found)
                continue
            value = value[node_ids.to(value.device)]
        if value.shape != target.shape:
            reshaped.append(found)
            continue
        if value.is_floating_point() != target.is_floating_point():
            kind = str(target.dtype).removeprefix("torch.")
            shown = str(value.dtype).removeprefix("torch.")
            raise InputError(f"must be of type {kind}", file=path, dataset=found, value=shown)
        value = value.to(target.dtype)
        if not torch.isfinite(value).all():
            raise InputError("is not finite", file=path, dataset=found)
        target.copy_(value)
    if not used - set(reshaped):
        raise InputError(
            f"has no parameter that fits the model, which needs {_listed(missing or reshaped)}",
            file=path,
            value=_listed(sorted(given)),
        )
    unknown = sorted(name for name in given.keys() - used if not name.endswith(_UNUSED))
    return Differences(sorted(missing), unknown, sorted(reshaped))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return tensors by name, on the CPU, memory-mapped where possible; nothing is unpickled.

    A .pt file may hold them under the key `state_dict`.

    Raises:
        InputError: there is no such file, it has another suffix, is damaged, or holds anything
            but tensors by name.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"must end in {' or '.join(ENDINGS)}", file=path)
    if not path.is_file():
        raise InputError("no such file", file=path)
    try:
        found = _read_pt(path) if path.suffix == ".pt" else _read_safetensors(path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged files raise errors of any type
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"can't be read as tensors by name: {reason}", file=path) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or len(found) > _MOST_NAMES:
        raise InputError("must hold tensors by name", file=path, value=type(found).__name__)
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise InputError(
                "must hold plain tensors by name: save model.state_dict()",
                file=path,
                value=str(name)[:80],
            )
    return found


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_complex())
    )


def _read_pt(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise InputError("is compressed, unlike what torch.save writes", file=path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError("needs safetensors: pip install safetensors", file=path) from None
    found: dict[str, Tensor] = load_file(str(path), device="cpu")
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class Export:
    """The result of an export: `names` in the file by names in the checkpoint, total `bytes`."""

    checkpoint: Path
    epoch: int
    names: dict[str, str]
    bytes: int


def export(place: Path, out: Path, *, force: bool = False) -> Export:
    """Write the parameters and buffers of a checkpoint; for one process.

    Args:
        place: a checkpoint, or a run directory: its best checkpoint, or the last if it has no best.
        out: a .safetensors or .pt file.

    Raises:
        InputError: there is no checkpoint, `out` has another suffix, or its name is taken.
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
        raise InputError("has two parameters with the same name", file=path)
    for name in list(state):
        if name.endswith(".module.running_mean"):  # PyTorch's batch count, not used here
            count = name.replace("running_mean", "num_batches_tracked")
            state[count] = torch.zeros((), dtype=torch.int64)
    _save(state, out)
    return Export(path, epoch, names, sum(value.nbytes for value in state.values()))


def _state(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the epoch, and parameters (averaged, if so stored) and buffers by our names."""
    checkpoint = files.read(path)
    if not checkpoint.config.model.own:
        check_built_in(checkpoint, path)
    state = {}
    for group in ("model/", "average/"):
        for name, array in checkpoint.arrays.items():
            if name.startswith(group):
                state[name.removeprefix(group)] = torch.from_numpy(array)
    rows = _learned_rows(path)
    for name in rows.keys() & state.keys():
        raise InputError("has two parameters with the same name", file=path, dataset=name)
    state |= rows
    state = {name: value for name, value in state.items() if not name.startswith(OF_TASK)}
    if not state:
        raise InputError("has no parameters", file=path)
    return checkpoint.epoch, state


def _learned_rows(path: Path) -> dict[str, Tensor]:
    """Return the embeddings of all nodes in the order of graph.h5, from whichever ranks' files."""
    found = read_every(path)
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
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(f"archive/{_SIGN}", __version__)  # torch.load ignores it
        content = buffer.getvalue()
    else:
        try:
            import safetensors.torch
        except ImportError:
            raise InputError(
                "needs safetensors: pip install safetensors, or name a .pt file", file=out
            ) from None
        content = safetensors.torch.save(state, metadata={"format": "pt", _SIGN: __version__})
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
    """Return `schema.WEIGHTS` if the file was written by `export`."""
    try:
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                ours = any(name.endswith(f"/{_SIGN}") for name in archive.namelist())
            return WEIGHTS if ours else None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < _LONGEST_HEADER else {}
        return WEIGHTS if _SIGN in header["__metadata__"] else None
    except (OSError, KeyError, TypeError, RecursionError, *_NO_ARCHIVE):
        return None
