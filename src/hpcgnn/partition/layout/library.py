"""The library of what lays out parts, in C++."""

from __future__ import annotations

import ctypes
from pathlib import Path

from hpcgnn.errors import InputError

LIBRARY = Path(__file__).with_name("libhpcgnn_layout.so")  # without OpenMP: torch brings its own


def library() -> ctypes.CDLL:
    """The library, loaded.

    Raises:
        InputError: it is not built.
    """
    if not LIBRARY.exists():
        raise InputError(
            "is not built; run `pip install .` or `python setup.py build_ext --inplace`",
            file=LIBRARY,
        )
    return ctypes.CDLL(str(LIBRARY))
