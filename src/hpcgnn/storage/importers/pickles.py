"""Old pickles of NumPy arrays, SciPy CSR matrices and plain lists, without running anything.

No class of the pickle is ever made: arrays and matrices become inert records of their state, from
which the values are taken after checks. Everything else in a pickle is refused by name. What is
made takes memory in proportion to the file: nothing copies, and little is referred to twice.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.reading import open_binary, require

_MAX_MEMO = 1 << 24
_MAX_REFERENCES = 48  # to what was stored before: the names of a few types and fields
_REFUSED = frozenset(
    {"DUP", "EMPTY_SET", "FROZENSET", "ADDITEMS", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
)


class _Inert:
    """Stands for any object of the pickle: what it was called with, and its state."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert):
    pass


class _Type(_Inert):
    pass


class CsrState(_Inert):
    """A SciPy CSR matrix as it was stored: `part(name)` is one of its arrays."""

    def part(self, name: str, path: Path) -> np.ndarray:
        found = self.state.get(name) if isinstance(self.state, dict) else None
        if not isinstance(found, _Array):
            raise InputError("is no CSR matrix", file=path, dataset=name)
        return _to_array(found, path)

    def shape(self, path: Path) -> tuple[int, int]:
        state = self.state if isinstance(self.state, dict) else {}
        shape: Any = state.get("_shape", state.get("shape"))
        whole = isinstance(shape, tuple) and len(shape) == 2
        if not whole or not all(type(k) is int and 0 <= k < 1 << 31 for k in shape):
            raise InputError("is no shape", file=path, dataset="_shape", value=str(shape)[:60])
        return shape


class _Encoded(_Inert):
    """How Python 3 stores bytes in the protocols of Python 2: a text, and the encoding latin1."""


class _Dictionary(dict[Any, Any]):
    """Whatever it is called with, it starts empty: entries come one by one."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("collections", "defaultdict"): _Dictionary,
    ("__builtin__", "list"): _Type,
    ("builtins", "list"): _Type,
    ("_codecs", "encode"): _Encoded,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[_module, "_reconstruct"] = _Array
for _module in ("scipy.sparse.csr", "scipy.sparse._csr"):
    _ADMITTED[_module, "csr_matrix"] = CsrState


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def load_pickle(path: Path, limit: int) -> Any:
    """The object in a pickle: an array, a `CsrState`, or dictionaries and lists of numbers.

    Raises:
        InputError: too large for `limit`, damaged, or anything else in it than the above.
    """
    size = require(path).stat().st_size
    if 8 * size > limit:
        raise InputError(f"takes {size} bytes, too many for --memory", file=path)
    with open_binary(path) as file:
        data = file.read(size + 1)
    try:
        _check_operations(data)
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"is no pickle of arrays: {reason}", file=path) from None
    return _to_array(found, path) if isinstance(found, _Array) else found


def _check_operations(data: bytes) -> None:
    """Refuse what makes much out of little: far slots, many references, copies on the stack."""
    references = 0
    for opcode, argument, _ in pickletools.genops(data):
        slot = int(argument or 0) if opcode.name.endswith("PUT") else 0
        if not 0 <= slot < min(_MAX_MEMO, len(data)):
            raise ValueError(f"memo slot {slot}")
        if opcode.name in _REFUSED:
            raise ValueError(f"operation {opcode.name} is not admitted")
        references += opcode.name.endswith("GET")
    if references > _MAX_REFERENCES:
        raise ValueError(f"refers {references} times to what it holds already")


def _to_array(array: _Array, path: Path) -> np.ndarray:
    """The values of a stored array, if its state is one of plain numbers."""
    try:
        _, shape, kind, fortran, raw = array.state
        code, order = kind.arguments[0], kind.state[1]
        dtype = np.dtype(code).newbyteorder(order if order in "<>" else "=")
        if isinstance(raw, _Encoded):
            raw = raw.arguments[0]
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError("its data are no bytes")
        if dtype.kind not in "biuf" or len(data) != prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
        values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return values.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # the state is whatever the file says
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"holds an array that is none of numbers: {reason}", file=path) from None
