"""The files of OGB's raw folders, which are read alike with one type of nodes and with several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.source import Column, EdgeChunk, ImportOptions
from hpcgnn.storage.importers.text import Table, blocks, matrix_rows

SETS = ("train", "valid", "test")


def if_there(path: Path) -> Column | None:
    return Column(path, "values", matrix_rows(path)) if path.exists() else None


def edge_pairs(path: Path) -> Iterator[np.ndarray]:
    table = Table([("source", np.int64), ("destination", np.int64)], delimiter=",")
    for block in blocks(path):
        rows = table.parse(block)
        yield np.stack([rows["source"], rows["destination"]], axis=1)


def integers(path: Path, limit: int) -> np.ndarray:
    table = Table([("value", np.int64)], delimiter=",")
    parts: list[np.ndarray] = []
    for block in blocks(path):
        parts.append(table.parse(block)["value"])
        if sum(part.nbytes for part in parts) > limit:
            raise InputError("takes more memory than fits: raise --memory", file=path)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def single_count(path: Path) -> int:
    found = integers(path, 1 << 20)
    if found.shape[0] != 1 or found[0] < 0:
        raise InputError("must hold one number: a data set of one graph", file=path)
    return int(found[0])


def counted(edges: Iterator[EdgeChunk], announced: int, path: Path) -> Iterator[EdgeChunk]:
    found = 0
    for chunk in edges:
        found += chunk.source.shape[0]
        yield chunk
    if found != announced:
        raise InputError(f"num-edge-list says {announced} edges", file=path, value=found)


def split_scheme(folder: Path, options: ImportOptions) -> Path | None:
    """The folder of the chosen split; None without any."""
    schemes = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not schemes:
        return None
    scheme = options.split_scheme or schemes[0]
    if scheme not in schemes or (options.split_scheme is None and len(schemes) > 1):
        raise InputError(f"choose one with --split-scheme: {', '.join(schemes)}", file=folder)
    return folder / scheme
