"""C++ libraries, which are in the folders of the modules that call them."""

from __future__ import annotations

import ctypes
from pathlib import Path

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
