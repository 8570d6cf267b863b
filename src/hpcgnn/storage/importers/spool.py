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
    for name in ("labels", "split"):
        if name in (records.dtype.names or ()):
            _check_duplicates_agree(records[name], new, name)
    return out


def _check_duplicates_agree(values: np.ndarray, new: np.ndarray, name: str) -> None:
    """What each record, unless it is `new`, has in common with the one before."""
    same = (values[1:] == values[:-1]) | ((values[1:] != values[1:]) & (values[:-1] != values[:-1]))
    same = same.reshape(len(same), -1).all(axis=1)
    if not (same | new[1:]).all():
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
_SAMPLES = 64


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
        self._buffer = bytearray()

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def append(self, records: np.ndarray) -> None:
        self.count += records.shape[0]
        self._buffer += np.ascontiguousarray(records).view(np.uint8).data
        if len(self._buffer) > self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Move everything to the file."""
        if self._buffer:
            try:
                with self._path.open("ab") as file:
                    file.write(self._buffer)
            except OSError as error:
                raise OutputError(
                    f"can't write temporary data: {error.strerror}", file=self._path.parent
                ) from None
            self._buffer = bytearray()

    def chunks(self, nbytes: int = PIECE_BYTES) -> Iterator[np.ndarray]:
        """The records in order, in read-only arrays of at most `nbytes`."""
        step = max(1, nbytes // self.dtype.itemsize) * self.dtype.itemsize
        if self._path.exists():
            with self._path.open("rb") as file:
                while data := file.read(step):
                    yield np.frombuffer(data, self.dtype)
        for low in range(0, len(self._buffer), step):
            yield np.frombuffer(bytes(self._buffer[low : low + step]), self.dtype)

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
        self._buffer = bytearray()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def sorted_slabs(
    records: Records, scratch: Scratch, keys: tuple[str, ...], *, whole: bool
) -> Iterator[np.ndarray]:
    """The records in ascending order of `keys`, in arrays of at most `scratch.limit` bytes.

    All records with the same first key come in one array where `whole`; equal records keep their
    order. The records are dropped on the way.

    Raises:
        InputError: more records share one first key than fit, and `whole` was asked for.
    """
    if records.nbytes <= scratch.limit:
        slab = records.load()
        records.drop()
        if slab.shape[0]:
            order = sorting_order(slab, keys)
            slab = slab[order]
            del order
            yield slab
        return
    records.flush()
    low, high = _extremes(records, keys[0])
    if low == high:
        if whole:
            raise InputError(
                f"node {low} alone has {records.count} edges, which take {records.nbytes} bytes"
                f" where {scratch.limit} fit: raise --memory"
            )
        yield from records.chunks()
        records.drop()
        return
    for bucket in _split(records, scratch, keys[0], low, high):
        yield from sorted_slabs(bucket, scratch, keys, whole=whole)


def sorting_order(records: np.ndarray, keys: tuple[str, ...]) -> np.ndarray:
    """int64 [n] stable order by `keys`, the first one leading."""
    lows = [int(records[key].min()) for key in keys]
    spans = [int(records[key].max()) - low + 1 for key, low in zip(keys, lows, strict=True)]
    if prod(spans) >= 1 << 63:
        return np.lexsort([records[key] for key in reversed(keys)])
    packed = records[keys[0]] - np.int64(lows[0])
    for key, low, span in zip(keys[1:], lows[1:], spans[1:], strict=True):
        packed *= span
        packed += records[key]
        packed -= low
    return np.argsort(packed, kind="stable")


def _extremes(records: Records, key: str) -> tuple[int, int]:
    extremes = [(int(p[key].min()), int(p[key].max())) for p in records.chunks()]
    return min(low for low, _ in extremes), max(high for _, high in extremes)


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
