"""Weights to start from, out of a .safetensors or .pt file of tensors by name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed, require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.nn.embedding import is_sharded
from hpcgnn.train.export import ENDINGS
from hpcgnn.train.state_names import outer_names

_PIECE = 1 << 20
_MOST_NAMES = 1 << 20
_SHOWN = 8
_UNUSED = "num_batches_tracked"  # of PyTorch's batch norm, which nothing here reads


@dataclass(frozen=True)
class Differences:
    """Names, as the file has them, that did not go into the model, or of it that weren't there."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]

    def lines(self, path: Path) -> list[str]:
        """What the user should know, if anything."""
        named = (
            (self.missing, "not in the file, so they start afresh"),
            (self.reshaped, "of another shape in the file, so they start afresh"),
            (self.unknown, "not of this model, so they are left out"),
        )
        return [f"{path}: {_listed(names)}: {what}" for names, what in named if names]


def start_from(
    model: torch.nn.Module, node_ids: Tensor, path: Path, comm: Communicator
) -> Differences:
    """Fill the model's parameters and buffers with those of the file that fit; collective.

    Names may be ours or PyTorch Geometric's (`state_names`). Learned embeddings are `[N, D]` in the
    order of graph.h5, of which each rank takes its own rows.

    Raises:
        InputError: no such file, one that isn't safe to read or not finite, another on some rank,
            or one of which nothing fits.
    """
    given: dict[str, Tensor] = {}
    facts = {"bytes": 0, "checksum": 0}
    with agreed(comm, "read the first weights"):
        facts = {"bytes": path.stat().st_size if path.is_file() else 0, "checksum": _checksum(path)}
        given = read_weights(path)
    require_same(comm, facts, "weights to start from", file=path)
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
        value = value.to(target.dtype)
        if not torch.isfinite(value).all():
            raise InputError("is not finite", file=path, dataset=found)
        target.copy_(value)
    if not used - set(reshaped):
        raise InputError(
            f"has nothing that fits the model, which needs {_listed(missing or reshaped)}",
            file=path,
            value=_listed(sorted(given)),
        )
    unknown = sorted(name for name in given.keys() - used if not name.endswith(_UNUSED))
    return Differences(sorted(missing), unknown, sorted(reshaped))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, mapped from the file where that can be; nothing is unpickled.

    A .pt file may hold them below `state_dict`.

    Raises:
        InputError: no such file, another ending, damaged, or more than tensors by name.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"must end in {' or '.join(ENDINGS)}", file=path)
    if not path.is_file():
        raise InputError("no such file", file=path)
    try:
        found = _read_pt(path) if path.suffix == ".pt" else _read_safetensors(path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of any type, on damaged files
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
            raise InputError("is compressed, as torch.save writes nothing", file=path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError("needs safetensors: pip install safetensors", file=path) from None
    found: dict[str, Tensor] = load_file(str(path), device="cpu")
    return found


def _checksum(path: Path) -> int:
    total = 0
    if path.is_file():
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                total = zlib.crc32(piece, total)
    return total


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
