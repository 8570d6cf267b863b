"""Libraries in C++ that lie beside the modules which call them."""

from __future__ import annotations

import ctypes
from pathlib import Path

from hpcgnn.errors import InputError


def open_library(path: Path) -> ctypes.CDLL:
    """The library that setup.py built.

    Raises:
        InputError: it was not built.
    """
    if not path.exists():
        raise InputError(
            "is not built; run `pip install .` or `python setup.py build_ext --inplace`",
            file=path,
        )
    return ctypes.CDLL(str(path))
