"""Host memory that the GPU copies from and to by itself, as much as was asked for.

torch's own allocator of pinned memory rounds up to powers of two: 33 GiB take 64.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import OutOfMemoryError

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU of the process


def pinned(num_bytes: int) -> Tensor:
    """New pinned memory: uint8 `[num_bytes]`, given back when the last view of it is gone.

    Raises:
        OutOfMemoryError: the system doesn't let so much be pinned.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Pages of its own: two registered ranges must not share one.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(pages, dtype=np.uint8)
    address = memory.ctypes.data
    status = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE))
    if status:
        raise OutOfMemoryError(
            f"{num_bytes / 2**30:.2f} GiB of host memory can't be pinned (CUDA error {status}): "
            "see `ulimit -l` and `hpcgnn doctor`"
        )
    # Runs before the array gives its pages up.
    weakref.finalize(memory, _unpin, address).atexit = False
    return torch.from_numpy(memory)


def pinned_copy(x: Tensor) -> Tensor:
    """`x`, contiguous, in pinned memory."""
    copy = pinned(x.numel() * x.element_size()).view(x.dtype).view(x.shape)
    return copy.copy_(x)


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies from or to this memory may still be under way
    torch.cuda.cudart().cudaHostUnregister(address)
