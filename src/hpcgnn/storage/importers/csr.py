"""Adjacency matrices in .npz archives: our own CSR, and the formats of `scipy.sparse.save_npz`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive, ArraySource, together
from hpcgnn.storage.importers.pairs import two_columns
from hpcgnn.storage.importers.source import Column, ImportOptions, SparseChunk, as_ids


def scipy_matrix(archive: Archive, options: ImportOptions) -> tuple[Column, Column | None, int]:
    """Return edges from row to column of a square matrix, their weights unless all are 1, and N.

    Raises:
        InputError: the format is not csr, csc or coo, or the matrix is not square.
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
            raise indptr.error(f"must have length {rows + 1} according to shape", indptr.shape)
        ends = compressed_pairs(indptr, archive["indices"], by_column=form == "csc")
    return ends, weights_of(data, options), rows


def weights_of(data: ArraySource, options: ImportOptions) -> Column | None:
    """Return the values of a matrix as weights of the edges, or None if all are 1.

    Raises:
        InputError: a boolean matrix stores an entry that is False, and so no edge.
    """
    check_dimensions(data, 1)
    if data.dtype.kind == "b":
        if not _all_ones(data):
            raise data.error("stores entries that are False: call matrix.eliminate_zeros()")
        return None
    weighted = options.weights and not _all_ones(data)
    return data.column(options.limit) if weighted else None


def _all_ones(data: ArraySource) -> bool:
    return all(bool((chunk == 1).all()) for chunk in data.flat())


def compressed_pairs(
    indptr: ArraySource, indices: ArraySource, *, by_column: bool = False
) -> Column:
    """Return [k, 2] chunks of (row, column); `indptr` is over rows, or columns if `by_column`."""
    for array in (indptr, indices):
        check_dimensions(array, 1)
    pairs: Iterator[np.ndarray] = csr_pairs(indptr, indices)
    if by_column:
        pairs = (pair[:, ::-1] for pair in pairs)
    return Column(indices.path, "indices", pairs)


def check_dimensions(array: ArraySource, ndim: int) -> None:
    """Raise InputError unless the array has `ndim` dimensions."""
    if array.ndim != ndim:
        raise array.error(f"must have {ndim} dimensions", array.shape)


_ENTRIES = 1 << 18


def _pointer_chunks(indptr: ArraySource, total: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield first row and int64 [k+1] pointers of consecutive rows, rising from 0 to `total`."""
    last = 0
    first_row = -1
    column = indptr.column(0)
    for raw in indptr.flat():
        chunk = as_ids(raw, column)
        if first_row < 0 and chunk[0] != 0:
            raise indptr.error("row pointers must start at 0", int(chunk[0]))
        bounds = chunk if first_row < 0 else np.concatenate([[last], chunk])
        falls = np.flatnonzero(bounds[1:] < bounds[:-1])
        if falls.shape[0]:
            row = max(first_row, 0) + int(falls[0])
            raise indptr.error(f"row pointers decrease after row {row}", int(bounds[falls[0] + 1]))
        if bounds[-1] > total:
            raise indptr.error(f"row pointers exceed the {total} entries", int(bounds[-1]))
        yield max(first_row, 0), bounds
        first_row = max(first_row, 0) + bounds.shape[0] - 1
        last = int(bounds[-1])
    if last != total:
        raise indptr.error(f"row pointers must end at the number of entries, {total}", last)


def csr_pairs(indptr: ArraySource, indices: ArraySource) -> Iterator[np.ndarray]:
    """Yield int64 [k, 2] chunks of (row, column).

    Raises:
        InputError: the pointers decrease, or don't end at the number of entries.
    """
    column = indices.column(0)
    pointers = _pointer_chunks(indptr, indices.shape[0])
    first_row, bounds = 0, np.zeros(1, np.int64)
    first = 0
    for chunk in indices.flat():
        end = first + chunk.shape[0]
        parts = []
        while True:
            rows = np.arange(first_row, first_row + bounds.shape[0] - 1)
            cut = np.clip(bounds, first, end)
            parts.append(np.repeat(rows, cut[1:] - cut[:-1]))
            if bounds[-1] >= end:
                break
            first_row, bounds = next(pointers)  # raises if they don't reach the total
        yield np.stack([np.concatenate(parts), as_ids(chunk, column)], axis=1)
        first = end
    for _ in pointers:
        pass


def sparse_rows(
    indptr: ArraySource, indices: ArraySource, data: ArraySource, width: int, limit: int
) -> Iterator[SparseChunk]:
    """Yield whole rows, with about 2^18 entries in each chunk.

    Raises:
        InputError: a pointer is invalid, or a row has more than `width` entries or `limit` bytes.
    """
    entry_bytes = indices.dtype.itemsize + data.dtype.itemsize
    tape = _Tape(together(indices.flat(), data.flat()))
    for first_row, bounds in _pointer_chunks(indptr, indices.shape[0]):
        low, number = 0, bounds.shape[0] - 1
        while low < number:
            fits = int(np.searchsorted(bounds, bounds[low] + _ENTRIES, side="right")) - 1
            high = min(number, max(low + 1, fits))
            counts = np.diff(bounds[low : high + 1])
            if counts.max() > width:
                row = first_row + low + int(np.argmax(counts))
                raise indptr.error(f"row {row} has more than {width} entries", int(counts.max()))
            if counts.max() * entry_bytes > limit:
                row = first_row + low + int(np.argmax(counts))
                raise indptr.error(f"row {row} takes more than --memory allows", int(counts.max()))
            columns, values = tape.take(int(bounds[high] - bounds[low]))
            yield SparseChunk(counts, as_ids(columns, indices.column(0)), values)
            low = high


class _Tape:
    """A buffer from which any number of rows can be taken off chunks of two columns."""

    def __init__(self, chunks: Iterator[tuple[np.ndarray, ...]]) -> None:
        self._chunks = chunks
        self._held: list[tuple[np.ndarray, ...]] = []

    def take(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        count = sum(chunk[0].shape[0] for chunk in self._held)
        while count < number:
            following = next(self._chunks, None)
            if following is None:
                break
            self._held.append(following)
            count += following[0].shape[0]
        if not self._held:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        joined = tuple(np.concatenate(parts) for parts in zip(*self._held, strict=True))
        self._held = [tuple(array[number:] for array in joined)]
        return joined[0][:number], joined[1][:number]
