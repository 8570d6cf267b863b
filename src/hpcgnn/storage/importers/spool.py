"""The in-neighbour lists, row by row, from edges in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError, OutputError
from hpcgnn.storage.importers.source import PIECE_BYTES
from hpcgnn.storage.write.atomic import claim_folder

_ROWS = 1 << 18


@dataclass(frozen=True)
class RowRules:
    """What the finished lists must look like; see `Treatment`."""

    symmetrise: bool = False
    self_loops: str = "keep"
    deduplicate: bool = False
    combine: str = "max"
    num_relations: int = 0


@dataclass
class RowChunk:
    """The lists of some consecutive nodes, as `GraphWriter.append_rows` takes them."""

    counts: np.ndarray
    indices: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    edge_features: np.ndarray | None
    edge_labels: np.ndarray | None
    edge_split: np.ndarray | None


def row_chunks(
    edges: Records, scratch: Scratch, num_nodes: int, rules: RowRules
) -> Iterator[RowChunk]:
    """The lists of nodes 0 .. num_nodes - 1; sources ascend in each list. `edges` are dropped.

    Raises:
        InputError: the list of one node alone is larger than `scratch.limit`, or a sum of weights
            is not finite.
    """
    names = edges.dtype.names or ()
    keys = ("destination", "source", *(("relation",) if "relation" in names else ()))
    dtype = edges.dtype
    row = 0
    for slab in sorted_slabs(edges, scratch, keys, whole=True):
        last = int(slab["destination"][-1]) + 1
        for low in range(row, last, _ROWS):
            high = min(last, low + _ROWS)
            first, end = np.searchsorted(slab["destination"], (low, high))
            yield _finish(slab[first:end], low, high, keys, rules)
        row = last
    for low in range(row, num_nodes, _ROWS):
        yield _finish(np.empty(0, dtype), low, min(num_nodes, low + _ROWS), keys, rules)


def _finish(
    records: np.ndarray, low: int, high: int, keys: tuple[str, ...], rules: RowRules
) -> RowChunk:
    if rules.deduplicate:
        records = _without_duplicates(records, keys, rules.combine)
    if rules.self_loops == "add":
        records = _with_self_loops(records, low, high, keys)
    names = records.dtype.names or ()
    return RowChunk(
        np.bincount(records["destination"] - low, minlength=high - low),
        np.ascontiguousarray(records["source"]),
        *(
            np.ascontiguousarray(records[name]) if name in names else None
            for name in ("weight", "relation", "features", "labels", "split")
        ),
    )


def _without_duplicates(records: np.ndarray, keys: tuple[str, ...], combine: str) -> np.ndarray:
    """Sorted records, one for each value of the keys."""
    if records.shape[0] == 0:
        return records
    new = np.ones(records.shape[0], bool)
    new[1:] = np.logical_or.reduce([records[key][1:] != records[key][:-1] for key in keys])
    starts = np.flatnonzero(new)
    if starts.shape[0] == records.shape[0]:
        return records
    out = records[starts]
    reduce = {"max": np.maximum, "sum": np.add}[combine]
    for name in ("weight", "features"):
        if name in (records.dtype.names or ()):
            with np.errstate(over="ignore"):
                out[name] = reduce.reduceat(records[name], starts, axis=0)
            if not np.isfinite(out[name]).all():
                raise InputError(f"the sum of the {name} of some duplicate edges is not finite")
    if "labels" in (records.dtype.names or ()):
        out["labels"] = np.fmax.reduceat(records["labels"], starts, axis=0)  # known over unknown
        _check_duplicates_agree(records["labels"], out["labels"], new, "labels")
    if "split" in (records.dtype.names or ()):
        _check_duplicates_agree(records["split"], out["split"], new, "split")
    return out


def _check_duplicates_agree(
    values: np.ndarray, kept: np.ndarray, new: np.ndarray, name: str
) -> None:
    """All of each edge have the value that is `kept` of them, but for labels that are unknown."""
    same = values == kept[np.cumsum(new) - 1]
    if name == "labels":
        same |= (values < 0) if values.dtype.kind == "i" else np.isnan(values)
    if not same.all():
        raise InputError(
            f"an edge and its duplicate, or its reverse, have different {name}: leave them as they "
            "are with --no-symmetrise and without --deduplicate"
        )


def _with_self_loops(records: np.ndarray, low: int, high: int, keys: tuple[str, ...]) -> np.ndarray:
    """Sorted records with an edge of weight 1 from each node to itself where there was none."""
    missing = np.ones(high - low, bool)
    loops = records["source"] == records["destination"]
    missing[records["source"][loops] - low] = False
    added = np.zeros(int(missing.sum()), records.dtype)
    added["source"] = added["destination"] = low + np.flatnonzero(missing)
    if "weight" in (records.dtype.names or ()):
        added["weight"] = 1
    if "labels" in (records.dtype.names or ()):
        added["labels"] = -1 if added["labels"].dtype.kind == "i" else np.nan
    both = np.concatenate([records, added])
    return both[sorting_order(both, keys)] if both.shape[0] else both


_MAX_BUCKETS = 256
_MANY = 1 << 20  # records, among which 30 MB are little
_DENSE = 4  # values per record up to which a list of all values is no more than the records
_SAMPLES = 64
_PACKED = 3  # times the limit that numbers in place of records may take
_IN_CACHE = 1 << 15  # numbers


class Scratch:
    """A temporary folder beside `out`, removed on leaving the with-block, errors included.

    What killed processes left for the same `out` is removed first.

    Args:
        limit: bytes of records that are held and sorted in memory at a time.
    """

    def __init__(self, out: Path, limit: int) -> None:
        self.limit = limit
        self._made = 0
        self._claim = claim_folder(out)

    def __enter__(self) -> Scratch:
        self.folder = self._claim.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._claim.__exit__(*error)

    def records(self, dtype: np.dtype, buffer: int | None = None) -> Records:
        """An empty list of records, kept in memory up to `buffer` bytes."""
        self._made += 1
        path = self.folder / str(self._made)
        return Records(path, dtype, self.limit if buffer is None else buffer)


class Records:
    """A list of fixed-size records: in memory while it is small, then in a file."""

    def __init__(self, path: Path, dtype: np.dtype, buffer: int) -> None:
        self.dtype = dtype
        self.count = 0
        self._path = path
        self._buffer_bytes = buffer
        self._held: list[np.ndarray] = []
        self._held_bytes = 0

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def append(self, records: np.ndarray) -> None:
        """Take these records, which nobody may change any more."""
        if not records.shape[0]:
            return
        self.count += records.shape[0]
        # Of a part of an array, only this part is kept.
        whole = records.base is None and records.flags.c_contiguous
        self._held.append(records if whole else records.copy())
        self._held_bytes += records.nbytes
        if self._held_bytes > self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Move everything to the file."""
        if self._held:
            try:
                with self._path.open("ab") as file:
                    for records in self._held:
                        file.write(records.view(np.uint8).data)
            except OSError as error:
                raise OutputError(
                    f"can't write temporary data: {error.strerror}", file=self._path.parent
                ) from None
            self._held, self._held_bytes = [], 0

    def chunks(self, nbytes: int = PIECE_BYTES) -> Iterator[np.ndarray]:
        """The records in order, in arrays of at most `nbytes`, which nobody may change."""
        rows = max(1, nbytes // self.dtype.itemsize)
        if self._path.exists():
            with self._path.open("rb") as file:
                while data := file.read(rows * self.dtype.itemsize):
                    yield np.frombuffer(data, self.dtype)
        waiting: list[np.ndarray] = []
        for records in self._held:  # small ones are joined
            if waiting and 4 * sum(one.shape[0] for one in waiting) >= rows:
                yield from _joined(waiting)
                waiting = []
            if sum(one.shape[0] for one in waiting) + records.shape[0] <= rows:
                waiting.append(records)
                continue
            yield from _joined(waiting)
            waiting = []
            for low in range(0, records.shape[0], rows):
                yield records[low : low + rows]
        yield from _joined(waiting)

    def load(self) -> np.ndarray:
        """All records in one array."""
        out = np.empty(self.count, self.dtype)
        first = 0
        for chunk in self.chunks():
            out[first : first + chunk.shape[0]] = chunk
            first += chunk.shape[0]
        return out

    def sample(self) -> np.ndarray:
        """Some records from all over the file, which must have been flushed."""
        block = max(1, PIECE_BYTES // _SAMPLES // self.dtype.itemsize)
        out = []
        with self._path.open("rb") as file:
            for first in np.linspace(0, max(0, self.count - block), _SAMPLES, dtype=np.int64):
                file.seek(int(first) * self.dtype.itemsize)
                out.append(np.frombuffer(file.read(block * self.dtype.itemsize), self.dtype))
        return np.concatenate(out)

    def drop(self) -> None:
        """Forget everything."""
        self._held, self._held_bytes = [], 0
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _joined(arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    if arrays:
        yield arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def sorted_slabs(
    records: Records, scratch: Scratch, keys: tuple[str, ...], *, whole: bool
) -> Iterator[np.ndarray]:
    """The records in ascending order of `keys`, in arrays of at most `scratch.limit` bytes.

    All records with the same first key come in one array where `whole`; equal records keep their
    order. The records are dropped on the way.

    Raises:
        InputError: more records share one first key than fit, and `whole` was asked for.
    """
    if records.count == 0:
        return
    packing = _packing(records, keys, scratch.limit)
    if packing is not None:
        yield from _unpacked(records, packing, scratch.limit, whole=whole)
        return
    if records.nbytes <= scratch.limit:
        slab = records.load()
        records.drop()
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


def _too_many(node: int, count: int, dtype: np.dtype, limit: int) -> InputError:
    return InputError(
        f"node {node} alone has {count} edges, which take {count * dtype.itemsize} bytes"
        f" where {limit} fit: raise --memory"
    )


@dataclass(frozen=True)
class _Packing:
    """How records become numbers: of each key, in turn, its least value and its bits."""

    keys: tuple[str, ...]
    lows: list[int]
    bits: list[int]


def _packing(records: Records, keys: tuple[str, ...], limit: int) -> _Packing | None:
    """For records that are nothing but keys, where there is room for their numbers.

    Sorting them in their place takes two arrays more.
    """
    if set(records.dtype.names or ()) != set(keys) or 8 * records.count > _PACKED * limit:
        return None
    ends = _lowest_and_highest(records, keys)
    bits = [(high - low).bit_length() for low, high in ends]
    return _Packing(keys, [low for low, _ in ends], bits) if sum(bits) < 64 else None


def _unpacked(
    records: Records, packing: _Packing, limit: int, *, whole: bool
) -> Iterator[np.ndarray]:
    """Records in ascending order, dropped; with the same first key in one array where `whole`."""
    keys, lows, bits = packing.keys, packing.lows, packing.bits
    packed = np.empty(records.count, np.int64)
    first = 0
    for chunk in records.chunks(_IN_CACHE * records.dtype.itemsize):
        here = packed[first : first + chunk.shape[0]]
        here[:] = 0
        for key, low, width in zip(keys, lows, bits, strict=True):
            here <<= width
            here |= chunk[key] - np.int64(low)
        first += chunk.shape[0]
    dtype = records.dtype
    records.drop()
    packed.sort()
    first, rest = 0, sum(bits[1:])
    while first < packed.shape[0]:
        last = min(first + _IN_CACHE, packed.shape[0])
        if whole:
            row = int(packed[last - 1] >> rest)
            last += int(np.searchsorted(packed[last:], (row + 1) << rest))
            if (last - first) * dtype.itemsize > max(limit, _IN_CACHE * dtype.itemsize):
                raise _too_many(row + lows[0], last - first, dtype, limit)
        out = np.empty(last - first, dtype)
        here = packed[first:last]
        for key, low, width in zip(reversed(keys), reversed(lows), reversed(bits), strict=True):
            out[key] = (here & ((1 << width) - 1)) + low
            here >>= width
        yield out
        first = last


def sorting_order(records: np.ndarray, keys: tuple[str, ...]) -> np.ndarray:
    """int64 [n] stable order by `keys`, the first one leading."""
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
    """int32 or int64 [n] stable order by `first`, then `second`, numbers from 0.

    A sparse matrix whose entries are places is sorted by rows, then by columns, in two passes over
    the entries: a third of the time of sorting numbers.
    """
    kind = np.int32 if first.shape[0] < 1 << 31 else np.int64
    from scipy import sparse  # takes 30 MB

    places = np.arange(first.shape[0], dtype=kind)
    shape = (int(second.max()) + 1, int(first.max()) + 1)
    ends = (second.astype(np.int32), first.astype(np.int32))
    matrix = sparse.coo_array((places, ends), shape=shape)
    matrix.has_canonical_format = True  # no two entries are to be added up
    return matrix.tocsr().tocsc().data


def _order_of(values: np.ndarray) -> np.ndarray:
    """int64 [n] stable order of numbers from 0 that leave room for their places, and are lost.

    Values are sorted together with their places: many times as fast as a stable argsort.
    """
    bits = np.int64(max(1, values.shape[0] - 1).bit_length())
    values <<= bits
    values |= np.arange(values.shape[0])
    values.sort()
    values &= (np.int64(1) << bits) - np.int64(1)
    return values


def _lowest_and_highest(records: Records, keys: tuple[str, ...]) -> list[tuple[int, int]]:
    """The least and the largest value of each key."""
    ends = [
        [(int(chunk[key].min()), int(chunk[key].max())) for key in keys]
        for chunk in records.chunks(_IN_CACHE * records.dtype.itemsize)
    ]
    lows_and_highs = np.array(ends)
    lows, highs = lows_and_highs[..., 0].min(axis=0), lows_and_highs[..., 1].max(axis=0)
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def _split(records: Records, scratch: Scratch, key: str, low: int, high: int) -> list[Records]:
    """Buckets of ascending ranges of `key`, each smaller than `records`, which are dropped."""
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
