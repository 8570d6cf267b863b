"""Rows of a checkpoint that only one rank owns: `sharded/<part>/ids` and the arrays beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import CHECKPOINT
from hpcgnn.train.checkpoint.arrays import check_finite

GROUP = "sharded/"
IDS = "ids"
_TYPES = ("float32", "float64", "int64", "uint8", "bool")

Forms = dict[str, list[str | int]]


def forms_of_rows(arrays: Mapping[str, np.ndarray]) -> Forms:
    """Return the dtype and shape of one row of each array except the ids."""
    return {
        name: [array.dtype.name, *array.shape[1:]] for name, array in arrays.items() if name != IDS
    }


def stored_forms(datasets: Sequence[Mapping[str, Any]], path: str | Path) -> Forms:
    """Return the `forms_of_rows` of a file's datasets, from `Reader.walk`; empty without rows.

    Raises:
        InputError: the arrays of a part differ in length, or from those of earlier parts.
    """
    parts: dict[str, dict[str, list[str | int]]] = {}
    lengths: dict[str, set[int]] = {}
    for found in datasets:
        if not found["name"].startswith(GROUP):
            continue
        _, part, name = found["name"].split("/")
        rows, *shape = found["shape"] or [-1]
        lengths.setdefault(part, set()).add(rows)
        parts.setdefault(part, {})[name] = [found["dtype"], *shape]
    first: Forms | None = None
    for part, forms in parts.items():
        group = f"{GROUP}{part}"
        if forms.pop(IDS, None) != ["int64"] or len(lengths[part]) != 1 or not forms:
            raise InputError(
                "must hold int64 ids and the same number of rows", file=path, dataset=group
            )
        first = forms if first is None else first
        if forms != first:
            raise InputError("holds other arrays than the previous parts", file=path, dataset=group)
    return first or {}


def check_parts(datasets: Sequence[Mapping[str, Any]], num_parts: int, path: str | Path) -> None:
    """Check that rows, if there are any, are of each of the parts 0 .. num_parts - 1 and no other.

    Raises:
        InputError: naming the number of parts found.
    """
    names = {found["name"] for found in datasets if found["name"].startswith(GROUP)}
    parts = sorted({name.split("/")[1] for name in names})
    if parts and parts != [f"{part:05d}" for part in range(num_parts)]:
        raise InputError(
            f"must hold the rows of parts 0 .. {num_parts - 1}, according to num_parts",
            file=path,
            dataset=GROUP.rstrip("/"),
            value=len(parts),
        )


def check_forms(rows: Forms, path: str | Path, *, built_in: bool) -> None:
    """Check rows as far as possible without knowing the model.

    Args:
        built_in: the model is built-in, and has only float32 rows.

    Raises:
        InputError: averages or moments have no parameter or differ from it in form, or a dtype is
            wrong.
    """
    for name, form in rows.items():
        parameter = _parameter(name)
        own = rows.get(f"model.{parameter}")
        if parameter is None or own is None:
            raise InputError("belongs to a parameter that does not exist", file=path, dataset=name)
        if form != own:
            raise InputError(
                f"must match its parameter, {own}", file=path, dataset=name, value=form
            )
        if built_in and form[0] != "float32":
            raise InputError("must be of type float32", file=path, dataset=name, value=form[0])


def check_rows(
    rows: Forms, model: Mapping[str, tuple[str, tuple[int, ...]]], path: str | Path
) -> None:
    """Check that rows are those of the model, before any is read.

    Args:
        model: dtype and row shape of each parameter of which ranks have their own rows.

    Raises:
        InputError: the model or the file lacks some rows, or they differ in dtype or width.
    """
    for name, form in rows.items():
        parameter = _parameter(name)
        if parameter is None or parameter not in model:
            raise InputError(
                "belongs to another model: only the checkpoint has such rows",
                file=path,
                dataset=name,
            )
        dtype, shape = model[parameter]
        if form != [dtype, *shape]:
            raise InputError(
                f"belongs to another model, whose rows are {[dtype, *shape]}",
                file=path,
                dataset=name,
                value=form,
            )
    for parameter in model:
        if f"model.{parameter}" not in rows:
            raise InputError(
                f"belongs to another model: only the model has parameter {parameter}", file=path
            )


def _parameter(name: str) -> str | None:
    group, _, rest = name.partition(".")
    found = {"model": rest, "average": rest, "optimizer": rest.rpartition(".")[0]}
    return found.get(group)


def read_sharded(
    path: str | Path, node_ids: np.ndarray, num_nodes: int | None = None
) -> dict[str, np.ndarray]:
    """Return the sharded rows of these nodes, from whichever ranks' parts.

    Args:
        num_nodes: of the graph that the rows belong to; None: rows of other nodes are skipped.

    Raises:
        InputError: a node has no row or two, or isn't in the graph; a row isn't finite; parts hold
            different arrays.
    """
    order = np.argsort(node_ids)
    found: dict[str, np.ndarray] = {}
    seen = np.zeros(len(node_ids), bool)
    with Reader(path, CHECKPOINT) as reader:
        for part in reader.names("sharded"):
            group = f"{GROUP}{part}"
            ids = reader.column(f"{group}/{IDS}", ("int64",), (None,)).read()
            _check_ids(ids, num_nodes, path, group)
            place = np.searchsorted(node_ids[order], ids)
            inside = place < len(node_ids)
            inside[inside] = node_ids[order][place[inside]] == ids[inside]
            target = order[place[inside]]
            places, counts = np.unique(target, return_counts=True)
            twice = places[(counts > 1) | seen[places]]
            if len(twice):
                raise InputError(
                    "has two learned embeddings for a node",
                    file=path,
                    dataset=group,
                    value=int(node_ids[twice[0]]),
                )
            seen[target] = True
            names = [name for name in reader.names(group) if name != IDS]
            if found and names != list(found):
                raise InputError(
                    "holds other arrays than the previous parts", file=path, dataset=group
                )
            for name in names:
                width = found[name].shape[1] if name in found else None
                dtypes = (found[name].dtype.name,) if name in found else _TYPES
                column = reader.column(f"{group}/{name}", dtypes, (len(ids), width))
                held = found.setdefault(
                    name, np.zeros((len(node_ids), column.shape[1]), column.dtype)
                )
                rows = column.read()
                check_finite(rows, path, f"{group}/{name}")
                held[target] = rows[inside]
    if not seen.all():
        missing = int(node_ids[~seen][0])
        raise InputError("has no learned embedding for a node", file=path, value=missing)
    return found


def read_every(path: str | Path) -> dict[str, np.ndarray]:
    """Return the sharded rows of all nodes in the order of graph.h5; empty without any.

    Raises:
        InputError: as `read_sharded`.
    """
    count = 0
    with Reader(path, CHECKPOINT) as reader:
        for part in reader.names("sharded"):
            count += len(reader.column(f"{GROUP}{part}/{IDS}", ("int64",), (None,)))
    return read_sharded(path, np.arange(count), count) if count else {}


def _check_ids(ids: np.ndarray, num_nodes: int | None, path: str | Path, group: str) -> None:
    most = np.iinfo(np.int64).max if num_nodes is None else num_nodes - 1
    outside = ids[(ids < 0) | (ids > most)]
    if len(outside):
        raise InputError(
            "has a learned embedding for a node that does not exist",
            file=path,
            dataset=group,
            value=int(outside[0]),
        )
