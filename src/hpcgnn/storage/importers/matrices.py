"""Adjacency matrices in .npz archives: our own CSR, and what `scipy.sparse.save_npz` stores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive, ArraySource
from hpcgnn.storage.importers.csr import csr_pairs
from hpcgnn.storage.importers.pairs import two_columns
from hpcgnn.storage.importers.source import Column, Options


def scipy_matrix(archive: Archive, options: Options) -> tuple[Column, Column | None, int]:
    """Edges from row to column of a square matrix, their weights unless all are 1, and N.

    Raises:
        InputError: a form other than csr, csc and coo, or a matrix that is not square.
    """
    form = archive.text("format")
    if form not in ("csr", "csc", "coo"):
        raise InputError(
            "must be csr, csc or coo: store matrix.tocsr()",
            file=archive.path,
            dataset="format",
            value=form,
        )
    size, data = archive["shape"], archive["data"]
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise size.error("must be two integers: rows and columns", size.shape)
    rows, columns = (int(k) for k in size.load(64))
    if rows != columns or rows < 0:
        raise size.error("a graph is a square matrix", [rows, columns])
    check_dimensions(data, 1)
    if form == "coo":
        row, column = archive["row"], archive["col"]
        for array in (row, column):
            check_dimensions(array, 1)
        ends = two_columns(archive.path, "row and col", row.flat(), column.flat())
    else:
        indptr = archive["indptr"]
        if indptr.shape != (rows + 1,):
            raise indptr.error(f"must have shape [{rows + 1}], as shape says", indptr.shape)
        ends = compressed_pairs(indptr, archive["indices"], by_column=form == "csc")
    weighted = options.weights and data.dtype.kind != "b" and not _all_ones(data)
    return ends, data.column(options.limit) if weighted else None, rows


def _all_ones(data: ArraySource) -> bool:
    return all(bool((piece == 1).all()) for piece in data.flat())


def compressed_pairs(
    indptr: ArraySource, indices: ArraySource, *, by_column: bool = False
) -> Column:
    """[k, 2] pieces of (row, column) where `indptr` goes over rows, or over columns."""
    for array in (indptr, indices):
        check_dimensions(array, 1)
    pairs: Iterator[np.ndarray] = csr_pairs(indptr, indices)
    if by_column:
        pairs = (pair[:, ::-1] for pair in pairs)
    return Column(indices.path, "indices", pairs)


def check_dimensions(array: ArraySource, ndim: int) -> None:
    if array.ndim != ndim:
        raise array.error(f"must have {ndim} dimensions", array.shape)
