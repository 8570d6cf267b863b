"""Tensors saved for backward, kept in half the bytes where their last bits don't matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

_NARROW = 8  # columns: narrower tensors hold scalars of rows


@dataclass(frozen=True)
class _Half:
    rows: Tensor


class Kept:
    """A context in which float32 rows that autograd saves are kept in bfloat16.

    This concerns matrices of at least 8 columns. Tensors in memory named by `exact` are kept as
    they are: parameters, features and others that exist anyway, and those that backward compares or
    exponentiates. An array that several functions save is kept once.

    Args:
        exact: tensors that are kept as they are.
    """

    def __init__(self, exact: Iterable[Tensor | None] = ()) -> None:
        self._exact: set[int] = set()
        self.exact(exact)
        self._halves: dict[tuple[object, ...], tuple[StorageWeakRef, _Half]] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpacked)

    def exact(self, tensors: Iterable[Tensor | None]) -> None:
        """Keep all tensors that share memory with these as they are."""
        self._exact.update(t.untyped_storage()._cdata for t in tensors if t is not None)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._halves.clear()

    def _pack(self, tensor: Tensor) -> Tensor | _Half:
        wide = tensor.dtype == torch.float32 and tensor.dim() == 2 and tensor.shape[1] >= _NARROW
        storage = tensor.untyped_storage()
        if not wide or storage._cdata in self._exact:
            return tensor
        # No other storage has this address while any reference to it exists, even a weak one.
        place = storage._cdata, tensor.storage_offset(), tensor._version
        key = *place, tensor.shape, tensor.stride()
        known = self._halves.get(key)
        if known is None:
            known = StorageWeakRef(storage), _Half(tensor.bfloat16())
            self._halves[key] = known
        return known[1]


def _unpacked(kept: Tensor | _Half) -> Tensor:
    return kept.rows.float() if isinstance(kept, _Half) else kept
