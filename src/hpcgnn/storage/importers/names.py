"""Text ids of nodes: numbered by a hash and kept as text, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.fingerprint import mix64
from hpcgnn.storage.importers.slabs import sorted_slabs
from hpcgnn.storage.importers.spool import Records, Scratch

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST = 1 << 12  # bytes that an id may have
_WORD = 8
_ENTRY = np.dtype(
    [("id", np.int64), ("check", np.uint64), ("sequence", np.int64), ("length", np.int64)]
)
_KEPT = np.dtype([("id", np.int64), ("sequence", np.int64)])
_BYTE = np.dtype([("byte", np.uint8)])
_SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344)


def hashes(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 ids from 0 and uint64 checks: two hashes of each text; no text may be null."""
    lengths, data = raw(strings)
    padded = np.zeros(data.shape[0] + _WORD, np.uint8)
    padded[: data.shape[0]] = data
    # Overlapping words of eight bytes, one starting at each byte.
    words = np.ndarray((data.shape[0] + 1,), np.dtype("<u8"), padded.data, strides=(1,))
    starts = np.cumsum(lengths) - lengths
    first = lengths.astype(np.uint64) + np.uint64(_SEEDS[0])
    second = lengths.astype(np.uint64) ^ np.uint64(_SEEDS[1])
    mix64(first)
    mix64(second)
    for low in range(0, int(lengths.max(initial=0)), _WORD):
        there = np.flatnonzero(lengths > low)
        word = words[starts[there] + low]
        surplus = np.clip(low + _WORD - lengths[there], 0, _WORD - 1).astype(np.uint64)
        word &= ~np.uint64(0) >> (surplus * np.uint64(8))
        for state, turn in ((first, 31), (second, 17)):
            mixed = state[there] ^ _rotated(word, turn)
            mix64(mixed)
            state[there] = mixed
    return (first >> np.uint64(1)).astype(np.int64), second


def _rotated(words: np.ndarray, bits: int) -> np.ndarray:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))


def raw(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of the texts in bytes, int64, and the concatenated bytes."""
    strings = strings.cast("large_string")
    _, offsets_buffer, data = strings.buffers()
    count, first = len(strings), strings.offset
    if count == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets_buffer, np.int64)[first : first + count + 1]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.diff(offsets), text[offsets[0] : offsets[-1]]


class NameStore:
    """The distinct text ids, in the order in which they are first added.

    Args:
        file: the file that errors name.
        limit: bytes of hashes held in memory.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self.file = file
        self._limit = limit
        self._sequence = 0
        self._known: list[tuple[np.ndarray, np.ndarray]] = []
        self._complete = True

    def begin(self, scratch: Scratch) -> None:
        """Set where the ids are stored; to be called once, before anything is added."""
        self._scratch = scratch
        self._entries = scratch.records(_ENTRY)
        self._bytes = scratch.records(_BYTE)

    def add(self, strings: pa.Array) -> np.ndarray:
        """Return int64 [n], the ids of these texts, and keep the texts that are new."""
        encoded = strings.dictionary_encode()
        texts = encoded.dictionary
        ids, checks = hashes(texts)
        order = np.argsort(ids)  # sorted look-ups make better use of the cache
        new = np.sort(order[~self._are_known(ids[order], checks[order])])
        self._keep(texts.take(new), ids[new], checks[new])
        self._remember(ids[new], checks[new])
        return ids[encoded.indices.to_numpy()]

    def codes(self, strings: pa.Array) -> np.ndarray:
        """Return int64 [n], the ids that these texts have or would get; none is kept."""
        encoded = strings.dictionary_encode()
        ids, _ = hashes(encoded.dictionary)
        return ids[encoded.indices.to_numpy()]

    def add_rows(self, strings: pa.Array) -> np.ndarray:
        """Add a list that names every node once, in the order of rows; return ids int64 [n]."""
        ids, checks = hashes(strings)
        self._keep(strings, ids, checks)
        return ids

    def _keep(self, texts: pa.Array, ids: np.ndarray, checks: np.ndarray) -> None:
        lengths, data = raw(texts)
        out = np.empty(ids.shape[0], _ENTRY)
        out["id"], out["check"], out["length"] = ids, checks, lengths
        out["sequence"] = np.arange(self._sequence, self._sequence + ids.shape[0])
        self._sequence += ids.shape[0]
        self._entries.append(out)
        self._bytes.append(np.ascontiguousarray(data).view(_BYTE))

    def _are_known(self, ids: np.ndarray, checks: np.ndarray) -> np.ndarray:
        out = np.zeros(ids.shape[0], bool)
        for known, known_checks in self._known:
            at = np.minimum(np.searchsorted(known, ids), known.shape[0] - 1)
            found = known[at] == ids
            if (known_checks[at][found] != checks[found]).any():
                raise self._alike()
            out |= found
        return out

    def _remember(self, ids: np.ndarray, checks: np.ndarray) -> None:
        """Remember ids in sorted arrays, each longer than the next, so that merging stays cheap."""
        held = sum(known.shape[0] for known, _ in self._known)
        if 32 * (held + ids.shape[0]) > self._limit:
            self._complete = False
            return
        while self._known and self._known[-1][0].shape[0] < 2 * ids.shape[0]:
            known, known_checks = self._known.pop()
            ids, checks = np.concatenate([known, ids]), np.concatenate([known_checks, checks])
        order = np.argsort(ids, kind="stable")  # a stable sort merges sorted runs
        ids, checks = ids[order], checks[order]
        if (ids[1:] == ids[:-1]).any():
            raise self._alike()
        if ids.shape[0]:
            self._known.append((ids, checks))

    def _alike(self) -> InputError:
        return InputError(
            "two of the ids have the same hash: number the nodes instead", file=self.file
        )

    def ids(self) -> Iterator[np.ndarray]:
        """Yield int64 chunks: the id of each row."""
        for chunk in self._rows():
            yield np.ascontiguousarray(chunk["id"])

    def _rows(self) -> Iterator[np.ndarray]:
        """Yield chunks of `_KEPT`, ascending by sequence: each id at its first appearance."""
        if self._complete:
            yield from self._entries.chunks()
            return
        copy = self._scratch.records(_ENTRY)
        for chunk in self._entries.chunks():
            copy.append(chunk)
        kept = self._scratch.records(_KEPT)
        last, check = -1, np.uint64(0)
        for slab in sorted_slabs(copy, self._scratch, ("id",), whole=False):
            before = np.concatenate([[last], slab["id"][:-1]])
            checks = np.concatenate([[check], slab["check"][:-1]]).astype(np.uint64)
            again = slab["id"] == before
            if (again & (slab["check"] != checks)).any():
                raise self._alike()
            out = np.empty(int((~again).sum()), _KEPT)
            for name in ("id", "sequence"):
                out[name] = slab[name][~again]
            kept.append(out)
            last, check = slab["id"][-1], slab["check"][-1]
        yield from sorted_slabs(kept, self._scratch, ("sequence",), whole=False)

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, by row, the lengths in bytes and the concatenated bytes of the names."""
        rows = self._rows()
        kept = next(rows, np.empty(0, _KEPT))
        text = _Bytes(self._bytes)
        for chunk in self._entries.chunks():
            data = text.take(int(chunk["length"].sum()))
            wanted = np.zeros(chunk.shape[0], bool)
            first, end = int(chunk["sequence"][0]), int(chunk["sequence"][-1]) + 1
            while kept.shape[0]:
                here = kept["sequence"][: np.searchsorted(kept["sequence"], end)]
                wanted[here - first] = True
                kept = kept[here.shape[0] :]
                if kept.shape[0]:
                    break
                kept = next(rows, np.empty(0, _KEPT))
            lengths = chunk["length"]
            yield lengths[wanted], data if wanted.all() else data[np.repeat(wanted, lengths)]


class _Bytes:
    """A spooled array of bytes, read from its start."""

    def __init__(self, records: Records) -> None:
        self._chunks = records.chunks()
        self._held = np.empty(0, np.uint8)

    def take(self, number: int) -> np.ndarray:
        parts = [self._held]
        have = self._held.shape[0]
        while have < number:
            part = next(self._chunks)["byte"]
            parts.append(part)
            have += part.shape[0]
        data = np.concatenate(parts)
        self._held = data[number:]
        return data[:number]
