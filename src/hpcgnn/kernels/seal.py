"""Signs that arrays were changed in place after something else was computed from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

_COMPARED = 1 << 16  # bytes of an array that are compared
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Seal:
    """The state of arrays when something was computed from them.

    A copy or a pickle of it is a seal of the copied arrays.

    Args:
        arrays: by name; None for one that there isn't.
        compared: names of arrays in host memory whose values are compared, all of a small array and
            evenly spaced ones of a large one: torch doesn't count changes through `.data` or NumPy.
    """

    def __init__(self, arrays: Mapping[str, Tensor | None], compared: Collection[str] = ()) -> None:
        self._arrays = {name: array for name, array in arrays.items() if array is not None}
        self._compared = list(compared)
        self._versions = self._counted()
        self._values = {
            name: _some(self._arrays[name]).clone()
            for name in compared
            if name in self._arrays and self._arrays[name].device.type == "cpu"
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return Seal, (self._arrays, self._compared)

    def changed(self) -> str | None:
        """Return the name of an array that was changed, or None."""
        versions = self._counted()
        if versions != self._versions:
            pairs = zip(versions, self._versions, strict=True)
            return list(self._arrays)[[now != then for now, then in pairs].index(True)]
        for name, values in self._values.items():
            if not torch.equal(values, _some(self._arrays[name])):
                return name
        return None

    def _counted(self) -> list[int]:
        return [0 if a.is_inference() else a._version for a in self._arrays.values()]


def _some(array: Tensor) -> Tensor:
    """Return evenly spaced rows as integers, since NaN equals nothing."""
    array = array.detach()
    most = max(1, _COMPARED * max(1, len(array)) // max(1, array.numel() * array.itemsize))
    rows = array[:: max(1, -(-len(array) // most))]
    return rows.view(_BITS[rows.itemsize]) if rows.is_floating_point() else rows
