"""C++ libraries, which are in the folders of the modules that call them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError


def open_library(path: Path) -> ctypes.CDLL:
    """Open the library that setup.py built.

    Raises:
        InputError: it was not built.
    """
    if not path.exists():
        raise InputError(
            "is not built; run `pip install .` or `python setup.py build_ext --inplace`",
            file=path,
        )
    return ctypes.CDLL(str(path))


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array's data as an argument; the caller keeps the array.

    `array.ctypes` as an argument is converted by Python code within ctypes, which turns a signal's
    exception there into an ArgumentError.
    """
    return ctypes.c_void_p(array.ctypes.data)
