"""Checked reading of an HDF5 file, in which any fault becomes one line naming file and dataset."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import h5py
import numpy as np

from hpcgnn.comm.liveness.termination import held
from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.storage.checks import Place, nesting
from hpcgnn.storage.fingerprint import fingerprint
from hpcgnn.storage.read.chunks import StoredChunks, check_declared
from hpcgnn.storage.schema import (
    CHUNK_BYTES,
    GRAPH,
    MAX_WIDTH,
    NEWEST_VERSION,
    PARTITION,
    attribute_checksum,
    chunk_rows,
)

DEEPEST = 32  # levels of nesting in JSON, and of groups
_CACHE_BYTES = 2 * CHUNK_BYTES
_PIECE_BYTES = 16 << 20
_MAX_INFLATION = 1100  # gzip reaches at most 1032 to 1
_INSTEAD = {  # advice by the format wanted and the format given
    (PARTITION, GRAPH): ": divide the graph into one part per rank first (hpcgnn partition, "
    "hpcgnn.partition_graph)",
    (GRAPH, PARTITION): ": use the graph file that the parts were made from",
}
_MEANINGS = {
    "filter returned failure": "its data fail their checksum",
    "metadata checksum": "its metadata fail their checksum",
}


class Reader:
    """An HDF5 file of one of our formats, opened for reading without a lock.

    Args:
        path: the file.
        format: the required value of attribute `format`; None accepts any of ours.

    Raises:
        InputError: the file is missing, not HDF5, truncated, or of another format or version, or
            its attributes are damaged.
    """

    def __init__(self, path: str | Path, format: str | None) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.size = self.path.stat().st_size
            self.attributes = self._read_attributes()
            self._check_format(format)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(Exception), held():
            self._file.close()

    def place(self, dataset: str, first: int = 0) -> Place:
        return Place(self.path, dataset, first)

    def integer(self, name: str, low: int, high: int) -> int:
        """Return attribute `name` of the root, an integer in `low .. high`."""
        value = self._attribute(name)
        if not isinstance(value, int) or not low <= value <= high:
            raise self._bad(f"attribute {name} must be an integer in {low} .. {high}", value)
        return value

    def text(self, name: str) -> str:
        value = self._attribute(name)
        if not isinstance(value, str):
            raise self._bad(f"attribute {name} must be text", value)
        return value

    def json(self, name: str) -> dict[str, Any]:
        text = self.text(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise self._bad(f"attribute {name} must be JSON", text[:80]) from None
        if not isinstance(value, dict):
            raise self._bad(f"attribute {name} must be a JSON object", text[:80])
        if nesting(value, DEEPEST) > DEEPEST:
            raise self._bad(f"attribute {name} is nested too deeply", text[:80])
        return value

    def has(self, name: str) -> bool:
        return self._get(name) is not None

    def is_group(self, name: str) -> bool:
        return isinstance(self._get(name), h5py.Group)

    def names(self, group: str) -> list[str]:
        """Return the sorted names in a group; [] if there is no such group."""
        found = self._get(group)
        with self._mapped(group):
            return sorted(map(_text, found)) if isinstance(found, h5py.Group) else []

    def group_attribute(self, group: str, name: str) -> int | str:
        found = self._get(group)
        if found is None:
            raise self.place(group).error("is missing")
        with self._mapped(group):
            value = _plain(found.attrs[name]) if name in found.attrs else None
        if value is None:
            raise self.place(group).error(f"attribute {name} is missing or has a wrong type")
        return value

    def column(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
    ) -> StoredColumn:
        """Return dataset `name`, after checks of dtype, shape (None: any length) and storage."""
        found = self._get(name)
        place = self.place(name)
        if not isinstance(found, h5py.Dataset):
            raise place.error("is missing" if found is None else "must be a dataset")
        with self._mapped(name):
            kind, actual, chunks = found.dtype, found.shape, found.chunks
            checked = found.fletcher32
        if kind.name not in dtypes or not kind.isnative or kind.names is not None:
            raise place.error(f"must be of type {' or '.join(dtypes)}", str(kind))
        fits = actual is not None and len(actual) == len(shape)
        if not fits or any(w is not None and w != a for w, a in zip(shape, actual, strict=True)):
            lengths = "x".join("any" if length is None else str(length) for length in shape)
            raise place.error(f"must have shape {lengths}", actual)
        if chunks is None or not checked:
            raise place.error("has no checksums (fletcher32); write the file with this package")
        wanted = check_declared(found, self.size, place)
        with self._mapped(name):
            present, stored = found.id.get_num_chunks(), found.id.get_storage_size()
        if present != wanted or stored * _MAX_INFLATION < prod(actual) * kind.itemsize:
            raise place.error(f"is incomplete: it has {present} of {wanted} chunks")
        return StoredColumn(self, name, found)

    def rows(self, name: str, dtypes: tuple[str, ...], number: int | None) -> StoredColumn:
        """Return dataset `name` of `number` rows (None: any), each one value or of any width."""
        found = self._get(name)
        with self._mapped(name):
            ndim = found.ndim if isinstance(found, h5py.Dataset) else 1
        column = self.column(name, dtypes, (number, *(None for _ in range(ndim == 2))))
        if not all(0 < width < MAX_WIDTH for width in column.shape[1:]):
            raise self.place(name).error("must have a width above 0", column.shape)
        return column

    def walk(self) -> list[dict[str, Any]]:
        """Return `name`, `shape`, `dtype`, `bytes`, `stored_bytes` of each dataset, unchecked."""
        found: list[dict[str, Any]] = []

        def visit(name: str, item: object) -> None:
            _text(name)
            if name.count("/") > DEEPEST:  # the time of a walk grows with the square of the depth
                raise ValueError(f"groups are nested more than {DEEPEST} deep")
            if isinstance(item, h5py.Dataset):
                if item.chunks is not None:
                    check_declared(item, self.size, self.place(name))
                found.append(
                    {
                        "name": name,
                        "shape": list(item.shape or ()),
                        "dtype": item.dtype.name,
                        "bytes": int(item.nbytes),
                        "stored_bytes": int(item.id.get_storage_size()),
                    }
                )

        with self._mapped("/"):
            self._file.visititems(visit)
        return sorted(found, key=lambda dataset: dataset["name"])

    def _get(self, name: str) -> h5py.Group | h5py.Dataset | None:
        item: h5py.Group | h5py.Dataset = self._file
        with self._mapped(name):
            for step in name.strip("/").split("/"):
                if not isinstance(item, h5py.Group) or step not in item:
                    return None
                if not isinstance(item.get(step, getlink=True), h5py.HardLink):
                    raise self.place(name).error("is a link; only plain datasets are read")
                item = item[step]
        return item

    def _read_attributes(self) -> dict[str, int | str]:
        attributes: dict[str, int | str] = {}
        with self._mapped("attributes"):
            for name in self._file.attrs:
                value = _plain(self._file.attrs[_text(name)])
                if value is not None:
                    attributes[name] = value
        return attributes

    def _check_format(self, format: str | None) -> None:
        actual = self.attributes.get("format")
        if not isinstance(actual, str) or not actual.startswith("hpcgnn-"):
            raise self._bad("is HDF5 but not an hpcgnn file: attribute format is missing", actual)
        if format is not None and actual != format:
            hint = _INSTEAD.get((str(format), actual), "")
            raise self._bad(f"must be a file of format {format}{hint}", actual)
        version = self.attributes.get("version")
        if not isinstance(version, int) or not 1 <= version <= NEWEST_VERSION:
            raise self._bad(f"this release reads format versions 1 to {NEWEST_VERSION}", version)
        checksum = self.attributes.get("checksum")
        if format is not None and checksum != attribute_checksum(self.attributes):
            raise self._bad("is damaged: the attributes don't match their checksum", checksum)

    def _attribute(self, name: str) -> int | str:
        if name not in self.attributes:
            raise self._bad(f"attribute {name} is missing or has a wrong type")
        return self.attributes[name]

    def _bad(self, message: str, value: object = None) -> InputError:
        return InputError(message, file=self.path, value=value)

    @contextmanager
    def _mapped(self, dataset: str) -> Iterator[None]:
        try:
            with held():
                yield
        except (HpcgnnError, MemoryError):
            raise
        except Exception as error:  # h5py raises nearly every built-in type on damaged files
            raise self.place(dataset).error(
                f"can't be read: {_reason(error)}; the file is damaged: create it again"
            ) from error


class FormatFile:
    """A file of one format that stays open for reading; `_open` reads and checks its header."""

    format: ClassVar[str]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader = Reader(path, self.format)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()


class StoredColumn:
    """A dataset that has passed the checks of `Reader.column`."""

    def __init__(self, reader: Reader, name: str, dataset: h5py.Dataset) -> None:
        self.reader = reader
        self.name = name
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype
        self._dataset = dataset
        with reader._mapped(name):
            self._chunks = StoredChunks(dataset, reader.size, self.place())

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return prod(self.shape[1:])

    def place(self, first: int = 0) -> Place:
        return self.reader.place(self.name, first)

    def read(self, low: int = 0, high: int | None = None) -> np.ndarray:
        """Return rows `low .. high - 1` as a new array."""
        high = len(self) if high is None else high
        if not 0 <= low <= high <= len(self):
            raise self.place().error(
                f"has {len(self)} rows, but the range asked for is outside", (low, high)
            )
        out = np.empty((high - low, *self.shape[1:]), self.dtype)
        if out.size:
            # In pieces, since signals are handled between them.
            step = max(1, _PIECE_BYTES // (out.nbytes // len(out) or 1))
            step = -(-step // self._dataset.chunks[0]) * self._dataset.chunks[0]
            with self.reader._mapped(self.name):
                self._chunks.check(low, high)
            for first in range(low - low % step, high, step):
                rows = slice(max(first, low), min(first + step, high))
                with self.reader._mapped(self.name):
                    self._dataset.read_direct(
                        out, np.s_[rows], np.s_[rows.start - low : rows.stop - low]
                    )
        return out

    def fingerprint(self, low: int, high: int) -> int:
        """Return the contribution of rows `low .. high - 1`, reading them in pieces."""
        step = chunk_rows(self.shape[1:], self.dtype)
        return sum(
            fingerprint(self.name, self.read(start, min(high, start + step)), start)
            for start in range(low, high, step)
        )


def format_of(path: Path) -> str | None:
    """Return the file's attribute `format`, of any release, or None if the file is not ours."""
    try:
        file = _open(path)
    except InputError:
        return None
    try:
        format = _plain(file.attrs["format"])
    except Exception:  # h5py raises nearly every built-in type on damaged files
        return None
    finally:
        with suppress(Exception):
            file.close()
    return format if isinstance(format, str) else None


def _open(path: Path) -> h5py.File:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError("is not a regular file", file=path)
        with held():
            return h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except PermissionError:
        raise InputError("no permission to read it", file=path) from None
    except Exception as error:
        reason = _reason(error)
        if "signature" in reason:
            raise InputError("is not an HDF5 file, or its start is damaged", file=path) from error
        if "truncated" in reason:
            size = path.stat().st_size
            raise InputError("is truncated: create it again", file=path, value=size) from error
        raise InputError(f"can't be opened: {reason}", file=path) from error


def _plain(value: object) -> int | str | None:
    """Return an attribute as int or str; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) else None


def _text(name: str | bytes) -> str:
    """Return a name in the file, checking that it is UTF-8."""
    if isinstance(name, bytes):
        raise ValueError(f"the name {name!r} is not UTF-8")
    name.encode()
    return name


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    for sign, meaning in _MEANINGS.items():
        if sign in text:
            return meaning
    return text[:160]
