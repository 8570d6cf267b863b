"""Reuse of the memory of large arrays, since new pages cost more than the work on them."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 1 << 20  # bytes: smaller arrays are on the heap, see `system.set_up`
_SLACK = 8  # a block may exceed the requested size by 1 / 8


class Arrays:
    """An allocator that reuses the memory of arrays once nothing refers to them any more.

    Unused memory never raises the total above the most that was in use at once: the peak is the
    same as if freed arrays were returned to the system at once.
    """

    def __init__(self) -> None:
        self._returned: deque[Tensor] = deque()  # appended by any thread that drops an array
        self._free: list[Tensor] = []  # most recently returned last
        self._lent = self._most = 0

    def empty(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Like `torch.empty`; large arrays on a CPU use this memory."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if device.type != "cpu" or num_bytes < _SMALLEST:
            return torch.empty(shape, dtype=dtype, device=device)
        lease = _Lease(self, self._take(num_bytes))
        storage = torch.from_numpy(np.asarray(lease)).untyped_storage()
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)  # not a view

    def like(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Like `torch.empty_like`, but contiguous."""
        return self.empty(*x.shape, dtype=dtype or x.dtype, device=x.device)

    @property
    def unused_bytes(self) -> int:
        self._collect()
        return sum(map(len, self._free))

    def _take(self, num_bytes: int) -> Tensor:
        self._collect()
        fitting = [
            memory
            for memory in reversed(self._free)
            if num_bytes <= len(memory) <= num_bytes + num_bytes // _SLACK
        ]
        if fitting:
            found = min(fitting, key=len)
            self._free = [memory for memory in self._free if memory is not found]
            self._lent += len(found)
            return found
        self._lent += num_bytes
        self._most = max(self._most, self._lent)
        while self._free and self._lent + sum(map(len, self._free)) > self._most:
            smallest = min(self._free, key=len)  # large ones cost most to allocate again
            self._free = [memory for memory in self._free if memory is not smallest]
        return torch.empty(num_bytes, dtype=torch.uint8)

    def _collect(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._lent -= len(memory)
            self._free.append(memory)


class _Lease:
    """The owner of memory while an array uses it; numpy and torch hold a reference to it."""

    def __init__(self, arrays: Arrays, memory: Tensor) -> None:
        self._back_to, self._memory = weakref.ref(arrays), memory

    @property
    def __array_interface__(self) -> dict[str, object]:
        memory = self._memory
        place = (memory.data_ptr(), False)
        return {"shape": (len(memory),), "typestr": "|u1", "data": place, "version": 3}

    def __del__(self) -> None:
        arrays = self._back_to()
        if arrays is not None:
            arrays._returned.append(self._memory)
