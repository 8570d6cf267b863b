"""Splits of the labelled nodes made here: by shares of each class, or by time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcgnn.errors import counted
from hpcgnn.storage.fingerprint import mix64
from hpcgnn.storage.importers.slabs import sorted_slabs
from hpcgnn.storage.importers.source import NoteOn
from hpcgnn.storage.importers.spool import Records, Scratch
from hpcgnn.storage.schema import TEST, TRAIN, VALID

_ENTRY = np.dtype([("key", np.int64), ("row", np.int64)])
_CODE = np.dtype([("row", np.int64), ("code", np.int8)])
_GOLDEN = 0x9E3779B97F4A7C15
_CHANCE = np.uint64(42)  # random bits of a key, below those of the class


class Known:
    """The class of each node, collected while labels are read, from which a split is then made."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._records: Records = scratch.records(np.dtype([("class", np.int64)]))

    def add(self, labels: np.ndarray) -> None:
        """Add labels as they are stored: classes [n], labels [n, T] or values [n] or [n, T]."""
        out = np.empty(labels.shape[0], self._records.dtype)
        classes = labels.ndim == 1 and labels.dtype == np.int64
        out["class"] = labels if classes else _any_known(labels)
        self._records.append(out)

    @property
    def count(self) -> int:
        """Number of nodes whose labels were added."""
        return self._records.count

    def split(self, ratio: tuple[float, float, float], seed: int) -> Iterator[np.ndarray]:
        """Yield the codes of the split, as `split_chunks` does."""
        labels = (chunk["class"] for chunk in self._records.chunks())
        yield from split_chunks(labels, None, ratio, seed, self._scratch)


def _any_known(labels: np.ndarray) -> np.ndarray:
    """Return int64 [n]: 0 if a row has any known label, else -1."""
    rows = labels.reshape(labels.shape[0], -1)
    known = ~np.isnan(rows) if rows.dtype.kind == "f" else rows >= 0
    return np.where(known.any(axis=1), 0, -1)


def split_chunks(
    labels: Iterator[np.ndarray],
    times: Iterator[np.ndarray] | None,
    ratio: tuple[float, float, float],
    seed: int,
    scratch: Scratch,
    notes: list[str] | None = None,
) -> Iterator[np.ndarray]:
    """Yield int8 chunks: 0 none, 1 train, 2 valid, 3 test; unlabelled nodes get 0.

    Args:
        labels: int64 chunks [n], -1: unknown.
        times: int64 chunks of the same lengths. If given, the earliest nodes are for train and the
            latest for test, whatever their class.
        ratio: the shares of train, valid and test, which add up to 1.
        seed: the seed of the random order in each class, used without `times`.
        notes: receives notes about classes that are too small, and about nodes of equal time in
            different sets.
    """
    notes = [] if notes is None else notes
    entries, counts, sizes = _entries(labels, times, seed, scratch)
    if times is None:
        notes += _too_small(counts, ratio)
    codes, shared = _coded(entries, counts, ratio, scratch, by_time=times is not None)
    if shared:
        text = (
            "the split by time separates nodes of the same time: among these the order of rows "
            "decides"
        )
        notes.append(NoteOn(None, text))
    yield from _by_row(sorted_slabs(codes, scratch, ("row",), whole=False), sizes)


def _entries(
    labels: Iterator[np.ndarray], times: Iterator[np.ndarray] | None, seed: int, scratch: Scratch
) -> tuple[Records, dict[int, int], list[int]]:
    """Return keys that sort the labelled nodes, their number by class, and the chunks' lengths.

    By time all nodes are in class 0.
    """
    entries = scratch.records(_ENTRY)
    counts: dict[int, int] = {}
    row = 0
    sizes = []
    for chunk in labels:
        known = np.flatnonzero(chunk >= 0)
        out = np.empty(known.shape[0], _ENTRY)
        out["row"] = row + known
        groups = np.zeros(known.shape[0], np.int64)
        if times is None:
            groups = chunk[known]
            key = out["row"].astype(np.uint64) + np.uint64(seed * _GOLDEN & (1 << 64) - 1)
            mix64(key)
            out["key"] = groups << _CHANCE.astype(np.int64)
            out["key"] += (key >> (np.uint64(64) - _CHANCE)).astype(np.int64)
        else:
            out["key"] = next(times)[known]
        for name, count in zip(*np.unique(groups, return_counts=True), strict=True):
            counts[int(name)] = counts.get(int(name), 0) + int(count)
        entries.append(out)
        sizes.append(chunk.shape[0])
        row += chunk.shape[0]
    return entries, counts, sizes


def _coded(
    entries: Records,
    counts: dict[int, int],
    ratio: tuple[float, float, float],
    scratch: Scratch,
    *,
    by_time: bool,
) -> tuple[Records, bool]:
    """Return the code of each node, and whether nodes of equal time are in different sets."""
    border = _Border()
    codes = scratch.records(_CODE)
    seen = dict.fromkeys(counts, 0)
    for slab in sorted_slabs(entries, scratch, ("key",), whole=False):
        out = np.empty(slab.shape[0], _CODE)
        out["row"] = slab["row"]
        groups = np.zeros_like(slab["key"])
        if not by_time:
            groups = slab["key"] >> _CHANCE.astype(np.int64)
        for name in np.unique(groups).tolist():
            here = slice(*np.searchsorted(groups, (name, name + 1)))
            place = seen[name] + np.arange(here.stop - here.start)
            seen[name] += here.stop - here.start
            out["code"][here] = _codes(place, counts[name], ratio)
        codes.append(out)
        if by_time:
            border.add(slab["key"], out["code"])
    return codes, border.shared


def _too_small(counts: dict[int, int], ratio: tuple[float, float, float]) -> list[NoteOn]:
    """A note where classes are not in every set that has a share."""
    wanted = sum(share > 0 for share in ratio)
    least = [c for c in counts.values() if c < 1000]  # more are in all sets, or a share is tiny
    small = [c for c in least if np.unique(_codes(np.arange(c), c, ratio)).shape[0] < wanted]
    if not small:
        return []
    text = f"{len(small):,} of {counted(len(counts), 'class')} have too few labelled nodes"
    return [NoteOn(None, f"{text} (at most {max(small)}) to be in every set of the split")]


class _Border:
    """A check, on ascending keys and their codes, whether nodes of equal time lie in two sets."""

    def __init__(self) -> None:
        self.shared = False
        self._key, self._code = np.empty(0, np.int64), np.empty(0, np.int8)

    def add(self, key: np.ndarray, code: np.ndarray) -> None:
        key, code = np.concatenate([self._key, key]), np.concatenate([self._code, code])
        self.shared |= bool(((key[1:] == key[:-1]) & (code[1:] != code[:-1])).any())
        self._key, self._code = key[-1:], code[-1:]


def _codes(place: np.ndarray, count: int, ratio: tuple[float, float, float]) -> np.ndarray:
    """Return the sets, TRAIN, VALID or TEST, of the nodes at these places among `count`."""
    train = int(np.ceil(count * ratio[0] - 1e-9))
    valid = min(count, train + round(count * ratio[1]))
    return np.where(place < train, TRAIN, np.where(place < valid, VALID, TEST))


def _by_row(slabs: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    held = np.empty(0, _CODE)
    low = 0
    for size in sizes:
        out = np.zeros(size, np.int8)
        while True:
            here = held[: np.searchsorted(held["row"], low + size)]
            out[here["row"] - low] = here["code"]
            held = held[here.shape[0] :]
            if held.shape[0]:
                break
            following = next(slabs, None)
            if following is None:
                break
            held = following
        yield out
        low += size
