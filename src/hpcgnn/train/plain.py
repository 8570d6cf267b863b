"""State of schedulers, optimizers and callbacks as JSON, and back: plain values, never code."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch

from hpcgnn.errors import InputError

_KIND = "__kind__"
_LISTS = {"tuple": tuple, "set": set, "deque": deque}
_MOST_DEPTH = 50
_MOST_NUMBERS = 1 << 16  # in a tensor among plain values


def encode(value: Any, what: str, depth: int = 0) -> Any:
    """Return a value that `json.dumps` takes; functions in dictionaries are left out.

    Args:
        what: name of the state's owner, for the error message.

    Raises:
        InputError: a value is not a number, a string or a small tensor, nor composed of these.
    """
    if depth > _MOST_DEPTH:
        raise InputError(f"{what} is nested too deeply to be kept in a checkpoint")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_KIND: "float", "of": str(value)}
    if isinstance(value, torch.Tensor | np.ndarray):
        return _encode_array(torch.as_tensor(value), what)
    if isinstance(value, list):
        return [encode(entry, what, depth + 1) for entry in value]
    for kind, made in _LISTS.items():
        if isinstance(value, made):
            return {_KIND: kind, "of": [encode(entry, what, depth + 1) for entry in value]}
    if isinstance(value, dict | Counter | OrderedDict | defaultdict):
        pairs = [
            [encode(key, what, depth + 1), encode(entry, f"{what}.{key}", depth + 1)]
            for key, entry in value.items()
            if not callable(entry)
        ]
        if all(isinstance(key, str) and key != _KIND for key, _ in pairs):
            return dict(pairs)
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {_KIND: kind, "of": pairs}
    raise InputError(
        f"{what} holds a {type(value).__name__}, which a checkpoint can't store: only numbers, "
        "strings, small tensors, and lists and dictionaries of these"
    )


def decode(value: Any) -> Any:
    """Return the value that was encoded.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it was not made by `encode`.
    """
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: decode(entry) for key, entry in value.items()}
    content = value["of"]
    if kind == "float":
        return float(content)
    if kind == "tensor":
        dtype = getattr(torch, value["dtype"])
        return torch.tensor(decode(content), dtype=dtype)
    if kind in _LISTS:
        return _LISTS[kind](decode(entry) for entry in content)
    pairs = [(decode(key), decode(entry)) for key, entry in content]
    return Counter(dict(pairs)) if kind == "counter" else dict(pairs)


def _encode_array(value: torch.Tensor, what: str) -> dict[str, Any]:
    if value.numel() > _MOST_NUMBERS or value.is_complex():
        raise InputError(
            f"{what} holds a tensor of {value.numel()} numbers, which is too large for a checkpoint"
        )
    dtype = str(value.dtype).removeprefix("torch.")
    numbers = value.detach().cpu()
    return {_KIND: "tensor", "dtype": dtype, "of": encode(numbers.tolist(), what)}
