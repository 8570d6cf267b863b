"""Numpy arrays and torch tensors seen as the plain bytes that MPI moves."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from hpcgnn.errors import CommunicationError

LARGEST_MESSAGE = 2**31 - 1


def is_tensor(value: object) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> np.ndarray:
    """The numpy array that shares memory with `value` (array or tensor on the host)."""
    if is_tensor(value):
        return value.detach().numpy()
    return np.asarray(value)


def as_bytes(buffer: Any) -> Any:
    """`buffer` (contiguous, any dtype) as uint8 [nbytes] that shares its memory.

    An array or host tensor gives an array; a tensor on a GPU stays one. Raises
    CommunicationError when it is not contiguous or above 2^31 - 1 bytes.
    """
    tensor = is_tensor(buffer)
    if not (buffer.is_contiguous() if tensor else buffer.flags.c_contiguous):
        raise CommunicationError("a message must be contiguous in memory: copy it first")
    if buffer.nbytes > LARGEST_MESSAGE:
        raise CommunicationError(
            f"a message of {buffer.nbytes} bytes is above MPI's 2^31 - 1: send it in pieces"
        )
    if not tensor:
        return buffer.reshape(-1).view(np.uint8)
    raw = buffer.detach().reshape(-1).view(sys.modules["torch"].uint8)
    return raw if raw.is_cuda else raw.numpy()
