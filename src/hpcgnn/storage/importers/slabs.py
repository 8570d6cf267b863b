"""Sorting of records by their keys, slab by slab, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from hpcgnn.errors import InputError, counted, human
from hpcgnn.storage.importers.buckets import in_buckets
from hpcgnn.storage.importers.ends import PAIR
from hpcgnn.storage.importers.spool import Records, Scratch

_MAX_BUCKETS = 256
_MANY = 1 << 20  # number of records for which SciPy's 30 MB are negligible
_DENSE = 4  # values per record up to which an array over all values is no larger than they are
_PACKED = 3  # packed numbers may take this multiple of the limit
_IN_CACHE = 1 << 19  # bytes; arrays this small reuse memory freed before


def sorted_slabs(
    records: Records, scratch: Scratch, keys: tuple[str, ...], *, whole: bool
) -> Iterator[np.ndarray]:
    """Yield the records in ascending order of `keys`, in arrays of at most `scratch.limit` bytes.

    With `whole`, all records with the same first key are in one array. Equal records keep their
    order. The records are dropped in the process.

    Raises:
        InputError: with `whole`, more records share a first key than fit.
    """
    if records.count == 0:
        return
    packing = _packing(records, keys, scratch.limit)
    if packing is not None:
        numbers = _ascending(packing, packing.take(records), scratch.limit)
        yield from _unpacked(numbers, packing, scratch.limit, whole=whole)
        return
    if records.nbytes <= scratch.limit:
        slab = records.take()
        yield slab[sorting_order(slab, keys)]
        return
    records.flush()
    ((low, high),) = _lowest_and_highest(records, keys[:1])
    if low == high:
        if whole:
            raise _too_many(low, records.count, records.dtype, scratch.limit)
        yield from records.chunks()
        records.drop()
        return
    for bucket in _split(records, scratch, keys[0], low, high):
        yield from sorted_slabs(bucket, scratch, keys, whole=whole)


def _ascending(packing: _Packing, numbers: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Yield the numbers, which are overwritten, in order; those of one first key in one array."""
    if isinstance(packing, _Pairs) and numbers.shape[0] >= _MANY:
        yield from in_buckets(numbers, 32, limit // 4)
        return
    numbers.sort()
    yield numbers


def _too_many(node: int, count: int, dtype: np.dtype, limit: int) -> InputError:
    return InputError(
        f"node {node} alone has {counted(count, 'edge')}, which take "
        f"{human(count * dtype.itemsize)}, and {human(limit)} fit: raise --memory"
    )


class _Packing(Protocol):
    """A conversion of records to int64 numbers in the order of the keys, and back."""

    @property
    def dtype(self) -> np.dtype: ...

    def take(self, records: Records) -> np.ndarray:
        """Return the numbers of all records, which are dropped."""

    def records(self, numbers: np.ndarray) -> np.ndarray:
        """Return the records of the numbers, which are overwritten."""

    def first_key(self, number: int) -> tuple[int, int, int]:
        """Return a number's first key, and the least numbers with this and with the next key."""


class _Pairs:
    """Pairs of 4-byte ends, which are reinterpreted as int64 numbers without a copy."""

    dtype = PAIR

    def take(self, records: Records) -> np.ndarray:
        return records.take().view(np.int64)

    def records(self, numbers: np.ndarray) -> np.ndarray:
        return numbers.view(PAIR)

    def first_key(self, number: int) -> tuple[int, int, int]:
        node = number >> 32
        return node, node << 32, (node + 1) << 32


@dataclass(frozen=True)
class _Packed:
    """Records packed into int64: each key minus its least value (`lows`) takes `bits` bits."""

    dtype: np.dtype
    keys: tuple[str, ...]
    lows: list[int]
    bits: list[int]

    def take(self, records: Records) -> np.ndarray:
        numbers = np.empty(records.count, np.int64)
        first = 0
        for chunk in records.chunks(_IN_CACHE):
            here = numbers[first : first + chunk.shape[0]]
            here[:] = 0
            for key, low, width in zip(self.keys, self.lows, self.bits, strict=True):
                here <<= width
                here |= chunk[key] - np.int64(low)
            first += chunk.shape[0]
        records.drop()
        return numbers

    def records(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty(numbers.shape[0], self.dtype)
        fields = zip(reversed(self.keys), reversed(self.lows), reversed(self.bits), strict=True)
        for key, low, width in fields:
            out[key] = (numbers & ((1 << width) - 1)) + low
            numbers >>= width
        return out

    def first_key(self, number: int) -> tuple[int, int, int]:
        rest = sum(self.bits[1:])
        key = number >> rest
        return key + self.lows[0], key << rest, (key + 1) << rest


def _packing(records: Records, keys: tuple[str, ...], limit: int) -> _Packing | None:
    """Return how to pack records that consist of the keys only, or None if the numbers don't fit.

    Sorting the records themselves would take two more arrays, so the numbers may exceed `limit`.
    """
    if set(records.dtype.names or ()) != set(keys) or 8 * records.count > _PACKED * limit:
        return None
    if records.dtype == PAIR and keys == ("destination", "source") and sys.byteorder == "little":
        return _Pairs()
    ends = _lowest_and_highest(records, keys)
    bits = [(high - low).bit_length() for low, high in ends]
    return _Packed(records.dtype, keys, [low for low, _ in ends], bits) if sum(bits) < 64 else None


def _unpacked(
    ascending: Iterator[np.ndarray], packing: _Packing, limit: int, *, whole: bool
) -> Iterator[np.ndarray]:
    """Yield the records of ascending numbers; with `whole`, one array has all of a first key.

    Where they are cut does not depend on the arrays that the numbers come in.
    """
    step = _IN_CACHE // packing.dtype.itemsize
    held = np.empty(0, np.int64)
    for numbers in ascending:
        held = np.concatenate([held, numbers]) if held.shape[0] else numbers
        first = 0
        while held.shape[0] - first >= step:
            last = _end(held[first:], step, packing, limit, whole=whole)
            yield packing.records(held[first : first + last])
            first += last
        held = held[first:]
    while held.shape[0]:
        last = _end(held, held.shape[0], packing, limit, whole=whole)
        yield packing.records(held[:last])
        held = held[last:]


def _end(numbers: np.ndarray, last: int, packing: _Packing, limit: int, *, whole: bool) -> int:
    """Return where to cut ascending numbers: at `last`, or with `whole` after or before its key."""
    if not whole:
        return last
    size = packing.dtype.itemsize
    node, least, following = packing.first_key(int(numbers[last - 1]))
    before = int(np.searchsorted(numbers[:last], least))
    last += int(np.searchsorted(numbers[last:], following))
    if (last - before) * size > max(limit, _IN_CACHE):
        raise _too_many(node, last - before, packing.dtype, limit)
    return before if before and last * size > limit else last


def sorting_order(records: np.ndarray, keys: tuple[str, ...]) -> np.ndarray:
    """Return int32 or int64 [n]: the stable order by `keys`, the first key leading."""
    lows = [int(records[key].min()) for key in keys]
    spans = [int(records[key].max()) - low + 1 for key, low in zip(keys, lows, strict=True)]
    most = min(_DENSE * records.shape[0], 1 << 31)
    if len(keys) == 2 and records.shape[0] >= _MANY and max(spans) <= most:
        return _order_of_pairs(
            *(records[key] - np.int64(low) for key, low in zip(keys, lows, strict=True))
        )
    if prod(spans) * records.shape[0] < 1 << 62:
        packed = records[keys[0]] - np.int64(lows[0])
        for key, low, span in zip(keys[1:], lows[1:], spans[1:], strict=True):
            packed *= span
            packed += records[key]
            packed -= low
        return _order_of(packed)
    order = np.arange(records.shape[0])
    for key, low, span in zip(reversed(keys), reversed(lows), reversed(spans), strict=True):
        values = records[key][order]
        if span * records.shape[0] < 1 << 62:
            following = _order_of(values - np.int64(low))
        else:
            following = np.argsort(values, kind="stable")
        order = order[following]
    return order


def _order_of_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return int32 or int64 [n]: the stable order by `first`, then `second`, numbers from 0.

    The positions become the entries of a sparse matrix, whose conversions to CSR and CSC sort them
    in two passes. This takes a third of the time of sorting numbers.
    """
    kind = np.int32 if first.shape[0] < 1 << 31 else np.int64
    from scipy import sparse  # takes 30 MB

    places = np.arange(first.shape[0], dtype=kind)
    shape = (int(second.max()) + 1, int(first.max()) + 1)
    ends = (second.astype(np.int32), first.astype(np.int32))
    matrix = sparse.coo_array((places, ends), shape=shape)
    matrix.has_canonical_format = True  # entries must not be summed
    return matrix.tocsr().tocsc().data


def _order_of(values: np.ndarray) -> np.ndarray:
    """Return int64 [n]: the stable order of numbers from 0, which are overwritten.

    Values are sorted together with their positions in the low bits, for which they must leave room:
    many times faster than a stable argsort.
    """
    bits = np.int64(max(1, values.shape[0] - 1).bit_length())
    values <<= bits
    values |= np.arange(values.shape[0])
    values.sort()
    values &= (np.int64(1) << bits) - np.int64(1)
    return values


def _lowest_and_highest(records: Records, keys: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the least and the largest value of each key."""
    ends = [
        [(int(chunk[key].min()), int(chunk[key].max())) for key in keys]
        for chunk in records.chunks(_IN_CACHE)
    ]
    lows_and_highs = np.array(ends)
    lows, highs = lows_and_highs[..., 0].min(axis=0), lows_and_highs[..., 1].max(axis=0)
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def _split(records: Records, scratch: Scratch, key: str, low: int, high: int) -> list[Records]:
    """Return buckets of ascending ranges of `key`, each smaller than `records`, and drop these."""
    number = min(_MAX_BUCKETS, 2 + 2 * records.nbytes // scratch.limit)
    sample = np.sort(records.sample()[key])
    bounds = np.unique(sample[np.arange(1, number) * sample.shape[0] // number])
    bounds = bounds[(bounds > low) & (bounds <= high)]
    if bounds.shape[0] == 0:
        bounds = np.array([low + (high - low + 1) // 2], dtype=np.int64)
    buffer = scratch.limit // (2 * (bounds.shape[0] + 1))
    buckets = [scratch.records(records.dtype, buffer) for _ in range(bounds.shape[0] + 1)]
    for chunk in records.chunks():
        where = np.searchsorted(bounds, chunk[key], side="right").astype(np.uint16)
        ordered = chunk[np.argsort(where, kind="stable")]
        ends = np.cumsum(np.bincount(where, minlength=len(buckets)))
        for bucket, first, last in zip(buckets, [0, *ends[:-1]], ends, strict=True):
            if last > first:
                bucket.append(ordered[first:last])
    records.drop()
    for bucket in buckets:
        bucket.flush()
    return buckets
