"""Checks of the stored chunks of a dataset, made before HDF5 unpacks them.

HDF5 trusts what a file declares about a chunk: it reads past the end of a chunk that unpacks to
fewer bytes than declared, and allocates as much memory as a chunk unpacks to.
"""

from __future__ import annotations

import zlib
from math import prod
from typing import Any

import h5py
from h5py import h5z

from hpcgnn.storage.checks import Place

_CHECKSUM_BYTES = 4
_PIECE = 1 << 17
_OURS = (
    (h5z.FILTER_FLETCHER32,),
    (h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32),
    (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32),
)


class StoredChunks:
    """The chunks of a chunked dataset, checked before they are first read.

    Args:
        file_bytes: the size of the file.
        place: the place of the dataset, for errors.
    """

    def __init__(self, dataset: h5py.Dataset, file_bytes: int, place: Place) -> None:
        self._dataset, self._file_bytes, self._place = dataset, file_bytes, place
        self._rows: int = dataset.chunks[0]
        self._bytes = prod(dataset.chunks) * dataset.dtype.itemsize
        self._filters = _filters(dataset)
        self._examined = False
        self._packed: set[int] = set()  # first rows of the compressed chunks not yet checked

    def check(self, low: int, high: int) -> None:
        """Check that HDF5 can safely read the rows `low .. high - 1`.

        Raises:
            InputError: chunks have another form than `OutputFile.dataset` writes, or don't unpack
                to the right number of bytes.
        """
        if not self._examined:
            self._examine()
            self._examined = True
        first = low // self._rows * self._rows
        for row in range(first, high, self._rows) if self._packed else ():
            if row in self._packed:
                if self._size_unpacked(row) != self._bytes:
                    raise self._error(f"the chunk at row {row} doesn't unpack to {self._bytes} B")
                self._packed.discard(row)

    def _examine(self) -> None:
        chunks, shape = self._dataset.chunks, self._dataset.shape
        if self._filters not in _OURS:
            raise self._error("is stored with filters that this package doesn't use")
        if chunks[1:] != tuple(max(1, length) for length in shape[1:]):
            raise self._error("has chunks that hold parts of rows")
        starts, stored = [], 0
        for start, mask, _, size in _stored(self._dataset):
            row = start[0]
            packed = self._is_packed(mask)
            inside = size - _CHECKSUM_BYTES
            fits = 0 < inside <= _most(self._bytes) if packed else inside == self._bytes
            if not fits or mask >> self._filters.index(h5z.FILTER_FLETCHER32):
                raise self._error(f"the chunk at row {row} doesn't hold {self._bytes} B")
            if packed:
                self._packed.add(row)
            starts.append(row)
            stored += size
        wanted = range(0, shape[0] if prod(shape) else 0, self._rows)
        if sorted(starts) != list(wanted):
            raise self._error(f"is incomplete: it has {len(starts)} of {len(wanted)} chunks")
        if stored > self._file_bytes:
            raise self._error(f"claims to take {stored} B of a file of {self._file_bytes}")

    def _is_packed(self, mask: int) -> bool:
        """Return whether the chunk was compressed, by its filter mask and the dataset's filters."""
        if h5z.FILTER_DEFLATE not in self._filters:
            return False
        return not mask >> self._filters.index(h5z.FILTER_DEFLATE) & 1

    def _size_unpacked(self, row: int) -> int:
        """Return the number of bytes unpacked, at most one too many; -1 for damaged data."""
        _, data = self._dataset.id.read_direct_chunk((row, *(0 for _ in self._dataset.shape[1:])))
        data, stream, size = data[:-_CHECKSUM_BYTES], zlib.decompressobj(), 0
        try:
            for at in range(0, len(data), _PIECE):
                piece = data[at : at + _PIECE]
                while piece and size <= self._bytes:
                    size += len(stream.decompress(piece, min(_PIECE, self._bytes + 1 - size)))
                    piece = stream.unconsumed_tail
            if size <= self._bytes:
                size += len(stream.flush())
        except zlib.error:
            return -1
        return size if stream.eof or size > self._bytes else -1

    def _error(self, message: str) -> Exception:
        return self._place.error(f"{message}; the file is damaged: create it again")


def _filters(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Return the numbers of the filters applied to the data, in order."""
    plan = dataset.id.get_create_plist()
    return tuple(plan.get_filter(index)[0] for index in range(plan.get_nfilters()))


def _stored(dataset: h5py.Dataset) -> list[Any]:
    """Return for each chunk its first element, mask of skipped filters, position and size."""
    found: list[Any] = []
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(found.append)
        return found
    return [dataset.id.get_chunk_info(index) for index in range(dataset.id.get_num_chunks())]


def _most(size: int) -> int:
    """Return the bytes that gzip may take for incompressible data."""
    return size + size // 100 + 1024
