"""Files of `torch.save`, loaded without running any code in them.

Files are loaded with `weights_only`: tensors, numbers, texts, lists and dictionaries. Objects of
PyTorch Geometric and torch_sparse become inert records, whose attributes are read. All other
objects are refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.errors import InputError, human
from hpcgnn.storage.importers.opening import require

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_LIBRARIES = ("torch_geometric.", "torch_sparse.")
_USUAL = (  # the classes in most files; any other costs one more attempt to load
    "collections.defaultdict",
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.graph_store.EdgeAttr",
    "torch_geometric.data.graph_store.EdgeLayout",
    "torch_geometric.data.hetero_data.HeteroData",
    "torch_geometric.data.storage.BaseStorage",
    "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.NodeStorage",
    "torch_geometric.data.storage.EdgeStorage",
    "torch_sparse.tensor.SparseTensor",
    "torch_sparse.storage.SparseStorage",
)
_MOST = 64


class Record:
    """An object of another library, without its methods."""

    def __new__(cls, *args: Any, **more: Any) -> Record:
        return object.__new__(cls)

    def __init__(self, *args: Any, **more: Any) -> None:
        pass


def _dictionary(*factory: Any) -> dict[Any, Any]:
    return {}


def load(path: Path, limit: int) -> Any:
    """Return the object in the file.

    Raises:
        InputError: the file is too large or damaged, or holds a class that is not loaded.
    """
    size = require(path).stat().st_size
    if 2 * size > limit * 8:
        raise InputError(f"takes {human(size)}, too many for --memory", file=path)
    names = set(_USUAL)
    while True:
        try:
            return _load(path, names)
        except Exception as error:  # a damaged pickle can raise almost anything
            text = " ".join(str(error).split())
        culprit = text.partition("GLOBAL ")[2].split(" ")[0]
        if not culprit:
            message = "can't be loaded: it is damaged, or not a file of torch.save"
            why = text.partition(". ")[0][:100]
            raise InputError(message, file=path, value=why if " " in why else None)
        if not culprit.startswith(_LIBRARIES) or culprit in names or len(names) >= _MOST:
            raise InputError(
                "holds objects that are not loaded: store data.to_dict() with torch.save",
                file=path,
                value=culprit,
            )
        names.add(culprit)


def _load(path: Path, names: set[str]) -> Any:
    import torch

    # An imported library may have registered its own classes as safe. Torch would choose at
    # random between these, whose methods would run, and our stand-ins.
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        stand_ins = [_stand_in(name) for name in names]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse tensors may change in a later release
            return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.add_safe_globals(others)


def _stand_in(name: str) -> Any:
    return (_dictionary if name.startswith("collections.") else type("R", (Record,), {})), name


def attributes(found: Any) -> dict[str, Any]:
    """Return the attributes of a record by name; {} for any other object."""
    return vars(found) if isinstance(found, Record) else {}


def dense(tensor: Any) -> np.ndarray:
    """Return a dense tensor as array."""
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError):  # bfloat16 and other types that NumPy lacks
        return tensor.detach().float().numpy()


Matrix = tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, int]]


def matrix(value: Any, path: Path, name: str) -> Matrix | None:
    """Return rows, columns and values (None: all are 1) of a sparse matrix, and its shape.

    The matrix is one of torch (csr, csc or coo, with values that may be rows) or a `SparseTensor`
    of torch_sparse. For any other `value`, return None.

    Raises:
        InputError: the matrix is damaged.
    """
    import torch

    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        return _checked(_of_torch(value), path, name)
    stored = attributes(attributes(value).get("storage"))
    if isinstance(stored.get("_col"), torch.Tensor):
        return _checked(_of_torch_sparse(stored), path, name)
    return None


@dataclass
class _Stored:
    """A sparse matrix as stored; `first` holds row pointers, or the row of each entry."""

    first: Any
    second: Any
    values: Any
    shape: tuple[int, ...]
    pointers: bool = False
    by_column: bool = False


def _of_torch(value: Any) -> _Stored | None:
    import torch

    shape = tuple(value.shape[:2])
    if value.layout == torch.sparse_csr:
        return _Stored(value.crow_indices(), value.col_indices(), value.values(), shape, True)
    if value.layout == torch.sparse_csc:
        first, second = value.ccol_indices(), value.row_indices()
        return _Stored(first, second, value.values(), shape[::-1], True, by_column=True)
    if value.layout == torch.sparse_coo and value.sparse_dim() == 2:
        rows, columns = value._indices()
        return _Stored(rows, columns, value._values(), shape)
    return None


def _of_torch_sparse(stored: dict[str, Any]) -> _Stored:
    rows, pointers = stored.get("_row"), stored.get("_rowptr")
    shape = tuple(stored.get("_sparse_sizes") or ())
    first = pointers if rows is None else rows
    return _Stored(first, stored["_col"], stored.get("_value"), shape, rows is None)


def _checked(stored: _Stored | None, path: Path, name: str) -> Matrix:
    wrong = InputError("is not a valid sparse matrix: store edge_index", file=path, dataset=name)
    if stored is None or stored.first is None or len(stored.shape) != 2:
        raise wrong
    rows, columns = dense(stored.first), dense(stored.second)
    values = None if stored.values is None else dense(stored.values)
    height, width = (int(k) for k in stored.shape)
    total = len(columns)
    if not rows.ndim == columns.ndim == 1 or {rows.dtype.kind, columns.dtype.kind} != {"i"}:
        raise wrong
    if stored.pointers:
        counts = np.diff(rows)
        if len(counts) != height or rows[0] != 0 or rows[-1] != total or (counts < 0).any():
            raise wrong
        rows = np.repeat(np.arange(height), counts)
    if len(rows) != total or (values is not None and len(values) != total):
        raise wrong
    for ends, most in ((rows, height), (columns, width)):
        if total and not 0 <= ends.min() <= ends.max() < most:
            raise wrong
    if values is not None and values.ndim == 1 and (values == 1).all():
        values = None
    if stored.by_column:
        return columns, rows, values, (width, height)
    return rows, columns, values, (height, width)


def compressed(found: Matrix) -> csr_matrix:
    """Return the matrix in CSR form; entries that occur twice are summed."""
    from scipy.sparse import csr_matrix  # takes 30 MB, and a quarter of a second

    rows, columns, values, shape = found
    return csr_matrix((np.ones(len(rows)) if values is None else values, (rows, columns)), shape)
