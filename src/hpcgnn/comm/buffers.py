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


def as_bytes(buffer: Any) -> np.ndarray:
    """`buffer` (contiguous array or host tensor, any dtype) as uint8 [nbytes], sharing memory.

    Raises CommunicationError when it is not contiguous or above 2^31 - 1 bytes.
    """
    array = as_array(buffer)
    if not array.flags.c_contiguous:
        raise CommunicationError(
            f"a message must be contiguous in memory, not strides {array.strides}"
        )
    if array.nbytes > LARGEST_MESSAGE:
        raise CommunicationError(
            f"a message of {array.nbytes} bytes is above MPI's 2^31 - 1: send it in pieces"
        )
    return array.reshape(-1).view(np.uint8)
