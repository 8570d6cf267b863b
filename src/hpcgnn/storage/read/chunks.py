"""Checks of the stored chunks of a dataset, made before HDF5 unpacks them.

HDF5 trusts what a file declares about a chunk: it reads past the end of a chunk that unpacks to
fewer bytes than declared, allocates as much memory as a chunk unpacks to, and walks through an
index of as many chunks as are declared, present or not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from math import prod
from typing import Any

import h5py
from h5py import h5z

from hpcgnn.storage.checks import Place
from hpcgnn.storage.schema import MAX_CHUNK_BYTES

_CHECKSUM_BYTES = 4
_FREE_BYTES = 16 << 20  # a chunk of so many bytes may be larger than its dataset
_SMALL_BYTES = 4096
_READABLE, _PACKED = 1, 2  # states of chunks; 0: absent
_MOST_SMALL = 1 << 12  # chunks below `_SMALL_BYTES`: reading takes 6 KB of memory for each
_PIECE = 1 << 17
_OURS = (
    (h5z.FILTER_FLETCHER32,),
    (h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32),
    (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32),
)


def check_declared(dataset: h5py.Dataset, file_bytes: int, place: Place) -> int:
    """Return the number of chunks declared, after checks that need none of them.

    Args:
        dataset: a chunked dataset with checksums.
        file_bytes: the size of the file.
        place: the place of the dataset, for errors.

    Raises:
        InputError: the chunks are too large, too many, or more than the file can hold.
    """
    shape, chunks = dataset.shape, dataset.chunks
    size, data = prod(chunks) * dataset.dtype.itemsize, prod(shape) * dataset.dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        raise place.error("has chunks above 256 MiB", chunks)
    if size > max(_FREE_BYTES, data):
        raise place.error(f"has chunks of {size} B for {data} B of data", chunks)
    number = prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))
    if number * (_CHECKSUM_BYTES + 1) > file_bytes:
        raise place.error(f"claims to have {number} chunks in a file of {file_bytes} B")
    if size < _SMALL_BYTES and number > _MOST_SMALL:
        raise place.error(f"has {number} chunks of {size} B: write it in larger chunks", chunks)
    return number


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
        self._states = bytearray()  # of each chunk, once examined

    def check(self, low: int, high: int) -> None:
        """Check that HDF5 can safely read the rows `low .. high - 1`.

        Raises:
            InputError: chunks have another form than `OutputFile.dataset` writes, or don't unpack
                to the right number of bytes.
        """
        if not self._states:
            self._states = self._examine()
        for chunk in range(low // self._rows, -(-high // self._rows)):
            if self._states[chunk] == _PACKED:
                row = chunk * self._rows
                if self._size_unpacked(row) != self._bytes:
                    raise self._error(f"the chunk at row {row} doesn't unpack to {self._bytes} B")
                self._states[chunk] = _READABLE

    def _examine(self) -> bytearray:
        chunks, shape = self._dataset.chunks, self._dataset.shape
        if self._filters not in _OURS:
            raise self._error("is stored with filters that this package doesn't use")
        if chunks[1:] != tuple(max(1, length) for length in shape[1:]):
            raise self._error("has chunks that hold parts of rows")
        number = -(-shape[0] // self._rows) if prod(shape) else 0
        states, present, stored, wrong = bytearray(number), 0, 0, -1

        def note(chunk: Any) -> bool | None:
            nonlocal present, stored, wrong
            row = chunk.chunk_offset[0]
            if not self._fits(chunk.filter_mask, chunk.size):
                wrong = row
                return True  # ends the walk
            present, stored = present + 1, stored + chunk.size
            if row % self._rows == 0 and row // self._rows < number:
                packed = self._is_packed(chunk.filter_mask)
                states[row // self._rows] = _PACKED if packed else _READABLE
            return None

        _walk(self._dataset, note)
        if wrong >= 0:
            raise self._error(f"the chunk at row {wrong} doesn't hold {self._bytes} B")
        if present != number or not all(states):
            raise self._error(f"is incomplete: it has {present} of {number} chunks")
        if stored > self._file_bytes:
            raise self._error(f"claims to take {stored} B of a file of {self._file_bytes}")
        return states

    def _fits(self, mask: int, size: int) -> bool:
        """Return whether a chunk of `size` bytes may hold what it should, checksum included."""
        inside = size - _CHECKSUM_BYTES
        packed = self._is_packed(mask)
        fits = 0 < inside <= _most(self._bytes) if packed else inside == self._bytes
        return fits and not mask >> self._filters.index(h5z.FILTER_FLETCHER32)

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


def _walk(dataset: h5py.Dataset, visit: Callable[[Any], bool | None]) -> None:
    """Call `visit` with the information on each chunk until it returns True."""
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(visit)
        return
    any(visit(dataset.id.get_chunk_info(index)) for index in range(dataset.id.get_num_chunks()))


def _most(size: int) -> int:
    """Return the bytes that gzip may take for incompressible data."""
    return size + size // 100 + 1024
