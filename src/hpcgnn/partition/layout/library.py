"""The C++ library that lays out parts."""

from __future__ import annotations

import ctypes
from pathlib import Path

from hpcgnn.native import open_library

LIBRARY = Path(__file__).with_name("libhpcgnn_layout.so")  # without OpenMP: torch brings its own


def library() -> ctypes.CDLL:
    """Return the library, loaded.

    Raises:
        InputError: it is not built.
    """
    return open_library(LIBRARY)
