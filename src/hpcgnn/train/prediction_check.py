"""Checks of the values of an HDF5 file of predictions."""

from __future__ import annotations

from math import prod

import numpy as np

from hpcgnn.storage import checks
from hpcgnn.storage.read.reader import Reader, StoredColumn

_SLAB_BYTES = 64 << 20
_IDS = ("original_ids", "source_ids", "target_ids")
_REAL = ("values", "probabilities", "embeddings", "output")
_KINDS = dict.fromkeys(_IDS, "iuS") | dict.fromkeys(_REAL, "f") | {"classes": "iu"}


def check_predictions(reader: Reader, columns: dict[str, StoredColumn]) -> None:
    """Read every value: arrays agree on the number of rows, and classes and probabilities exist.

    Args:
        columns: the datasets by name; those that `predict` doesn't write are only read.

    Raises:
        InputError: for the first error found.
    """
    known = {name: column for name, column in columns.items() if name in _KINDS}
    rows = {len(column) for column in known.values()}
    for name, column in known.items():
        if column.dtype.kind not in _KINDS[name] or len(column.shape) > 1 + (name not in _IDS):
            raise column.place().error("has another type or shape than predictions have")
        if len(rows) > 1:
            shown = ", ".join(f"{len(other):,} of {of}" for of, other in known.items())
            raise column.place().error(f"disagrees on the number of rows: {shown}")
    for name, column in columns.items():
        if name not in known:
            column.fingerprint(0, len(column))
    _check_rows(reader, known)


def _check_rows(reader: Reader, columns: dict[str, StoredColumn]) -> None:
    if not columns:
        return
    widest = max(prod(c.shape[1:]) * c.dtype.itemsize for c in columns.values())
    total, step = len(next(iter(columns.values()))), max(1, _SLAB_BYTES // max(1, widest))
    wrong = 0
    for low in range(0, total, step):
        high = min(low + step, total)
        bad = np.zeros(high - low, bool)
        for name, column in columns.items():
            values = column.read(low, high)
            if name in _REAL:
                bad |= ~np.isfinite(values).reshape(high - low, -1).all(axis=1)
            if name == "probabilities":
                outside = (values < 0) | (values > 1)
                if outside.any():
                    raise column.place(low).error("must lie in 0 .. 1", values[outside][0])
            elif name == "classes":
                checks.in_range(values, 0, _num_classes(values, columns), column.place(low))
        wrong += int(bad.sum())
    if "not_finite" in reader.attributes:
        said = reader.integer("not_finite", 0, total)
        if wrong > said:
            raise reader.place("").error(
                f"{wrong:,} rows are not finite, where not_finite is", said
            )


def _num_classes(classes: np.ndarray, columns: dict[str, StoredColumn]) -> int:
    if classes.ndim == 2:  # one 0 or 1 for each label
        return 2
    beside = columns.get("probabilities")
    if beside is not None and len(beside.shape) == 2:
        return int(beside.shape[1])
    return int(np.iinfo(classes.dtype).max)
