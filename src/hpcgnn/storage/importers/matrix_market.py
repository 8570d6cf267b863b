"""MatrixMarket coordinate files, in which entry (i, j) is an edge from i to j."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.source import EdgeChunk, ImportOptions, Source
from hpcgnn.storage.importers.text import Table, TextBlock, blocks_of, readable

_BANNER = b"%%matrixmarket "
_MAX_LINE = 1 << 16
_MAX_HEADER = 20_000  # lines
_FIELDS: list[tuple[str, type]] = [("i", np.int64), ("j", np.int64), ("value", np.float64)]
_KINDS = ("real", "integer", "pattern")
_SYMMETRIES = {"general": 0, "symmetric": 1, "skew-symmetric": -1}


def has_banner(path: Path) -> bool:
    """Return whether the file begins with MatrixMarket's banner, whatever its name."""
    if path.suffix == ".npy":
        return False
    with open_binary(path) as file:
        return file.read(len(_BANNER)).lower() == _BANNER


def read_matrix_market(path: Path, options: ImportOptions) -> Source:
    """Return the graph of a square sparse matrix; a symmetric one gets both directions.

    Raises:
        InputError: the matrix is of another kind or not square, or a line is malformed.
    """
    with open_binary(path) as file:
        _, (entries, _), size, mirror = _header(file, path)
    edges = entries * (2 if mirror else 1)
    return Source(path, _entries(path, options), num_nodes=size, num_edges=edges)


def _header(file: BinaryIO, path: Path) -> tuple[list[str], tuple[int, int], int, int]:
    """Return the first line's words, (number of entries, their first line), N and mirror sign."""
    first = _line(file, path, 1).lower().split()
    if first[:2] != ["%%matrixmarket", "matrix"] or len(first) != 5:
        raise InputError(
            "must start with %%MatrixMarket matrix", file=path, dataset="line 1", value=first[:5]
        )
    if first[2] != "coordinate" or first[3] not in _KINDS or first[4] not in _SYMMETRIES:
        raise InputError(
            f"must be coordinate, one of {', '.join(_KINDS)}, one of {', '.join(_SYMMETRIES)}",
            file=path,
            dataset="line 1",
            value=" ".join(first[2:]),
        )
    number = 2
    while (line := _line(file, path, number)).startswith("%") or not line.strip():
        number += 1
        if number > _MAX_HEADER:
            raise InputError(f"has no sizes in its first {_MAX_HEADER} lines", file=path)
    sizes = line.split()
    if len(sizes) != 3 or not all(word.isascii() and word.isdecimal() for word in sizes):
        raise InputError(
            "must be three sizes: rows, columns, entries",
            file=path,
            dataset=f"line {number}",
            value=line.strip()[:60],
        )
    rows, columns, entries = (int(word[:30]) for word in sizes)
    if rows != columns or not 0 < rows < 1 << 56:
        raise InputError(
            "a graph is a square matrix", file=path, dataset=f"line {number}", value=(rows, columns)
        )
    return first, (entries, number + 1), rows, _SYMMETRIES[first[4]]


def _line(file: BinaryIO, path: Path, number: int) -> str:
    line = file.readline(_MAX_LINE)
    if not line or len(line) == _MAX_LINE:
        problem = "longer than any header line" if line else "the file ends in its header"
        raise InputError(problem, file=path, dataset=f"line {number}")
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    if b"\r" in line.rstrip(b"\r\n"):
        raise InputError("has lines that end in CR alone: convert them to LF", file=path)
    return readable(line)


def _entries(path: Path, options: ImportOptions) -> Iterator[EdgeChunk]:
    with open_binary(path) as file:
        words, (announced, first), size, mirror = _header(file, path)
        table = Table(_FIELDS[: 2 if words[3] == "pattern" else 3], comments=(b"%",))
        found = 0
        triangle = _Triangle(mirror)
        for block in blocks_of(file, path, first):
            rows = table.parse(block)
            found += rows.shape[0]
            if found > announced:
                break
            for name in ("i", "j"):
                table.check_numbered(rows[name], size, block, f"{name} lies in")
            triangle.check(rows, table, block)
            yield from _edges(rows, table, block, mirror, options)
    if found != announced:
        more = "more" if found > announced else f"only {found}"
        raise InputError(f"has {more} entries but its header announces {announced}", file=path)


class _Triangle:
    """A check that a matrix whose mirror image is added stores one side of its diagonal only."""

    def __init__(self, mirror: int) -> None:
        self._mirror = mirror
        self._side = 0

    def check(self, rows: np.ndarray, table: Table, block: TextBlock) -> None:
        if not self._mirror:
            return
        sides = np.sign(rows["i"] - rows["j"])
        if not self._side and sides.any():
            self._side = int(sides[np.argmax(sides != 0)])
        wrong = sides == -self._side if self._side else np.zeros(sides.shape, bool)
        message = "a symmetric matrix stores one side of its diagonal, not both"
        if self._mirror < 0:
            wrong |= sides == 0
            message = "a skew-symmetric matrix stores one side of its diagonal, without it"
        if wrong.any():
            k = int(np.argmax(wrong))
            raise InputError(
                message,
                file=block.file,
                dataset=table.place(block, k),
                value=(int(rows["i"][k]), int(rows["j"][k])),
            )


def _edges(
    rows: np.ndarray, table: Table, block: TextBlock, mirror: int, options: ImportOptions
) -> Iterator[EdgeChunk]:
    i, j = rows["i"] - 1, rows["j"] - 1
    value = rows["value"] if options.weights and "value" in (rows.dtype.names or ()) else None
    yield EdgeChunk(i, j, place=lambda k: table.place(block, k), weight=value)
    if mirror:
        other = np.flatnonzero(i != j)
        yield EdgeChunk(
            j[other],
            i[other],
            place=lambda k: table.place(block, int(other[k])),
            weight=None if value is None else mirror * value[other],
        )
