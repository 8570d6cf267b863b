"""Optional arrays that have the same form on all ranks, and their rows for given nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.routing import Array, Int64, Route, edge_positions, pointers
from hpcgnn.storage.read.nodes import CsrRows, NodeData

Columns = dict[str, Array]


def agree(comm: Communicator, columns: Mapping[str, Array | None]) -> Columns:
    """Return the columns that any rank has; a rank without one gets an empty one of that form.

    Raises:
        InputError: a column has different dtypes or trailing shapes on two ranks.
    """
    mine = {name: (a.dtype.str, a.shape[1:]) for name, a in columns.items() if a is not None}
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for rank, theirs in enumerate(comm.allgather(mine)):
        for name, form in theirs.items():
            if forms.setdefault(name, form) != form:
                raise InputError(f"{name} is {form} here, {forms[name]} elsewhere", rank=rank)
    result = {}
    for name in sorted(forms):
        dtype, trailing = forms[name]
        column = columns.get(name)
        result[name] = np.empty((0, *trailing), dtype) if column is None else column
    return result


def node_columns(comm: Communicator, nodes: NodeData) -> Columns:
    """Return the arrays of `nodes` by name; sparse features as indptr, indices, data, width."""
    columns: dict[str, Array | None] = {
        "labels": nodes.labels,
        "split": nodes.split,
        "type": nodes.type,
        "original_ids": nodes.original_ids,
    }
    features = nodes.features
    if isinstance(features, CsrRows):
        columns["sparse/indptr"] = features.indptr
        columns["sparse/indices"] = features.indices
        columns["sparse/data"] = features.data
        columns["sparse/width"] = np.full(1, features.width)
    else:
        columns["features"] = features
    for kind, rows in (nodes.typed_features or {}).items():
        columns[f"typed/{kind}"] = rows
    for name, values in nodes.named.items():
        columns[f"named/{name}"] = values
    return agree(comm, columns)


def check_lengths(columns: Columns, num_rows: int) -> None:
    """Raise InputError if a column doesn't have one row per node."""
    for name, column in columns.items():
        expected = num_rows
        if name.startswith("sparse/"):
            continue
        if name.startswith("typed/"):
            kind = int(name.removeprefix("typed/"))
            expected = int((columns["type"] == kind).sum()) if "type" in columns else 0
        if len(column) != expected:
            raise InputError(f"{name} has {len(column)} rows for {expected} nodes")


def distribute(comm: Communicator, route: Route, columns: Columns) -> Columns:
    """Return the columns of nodes that arrive on this rank, in ascending order of the nodes."""
    arrived: Columns = {}
    for name, column in columns.items():
        if name in ("sparse/indices", "sparse/data"):
            indptr = columns["sparse/indptr"]
            arrived[name] = route.ragged(indptr if len(indptr) else pointers(indptr), column)
        elif name == "sparse/indptr":
            arrived[name] = pointers(route.rows(np.diff(column)))
        elif name == "sparse/width":
            arrived[name] = np.array(comm.allreduce(int(column.max(initial=0)), op="max"))[None]
        elif name.startswith("typed/"):
            kind = int(name.removeprefix("typed/"))
            indptr = pointers(columns["type"] == kind)
            arrived[name] = route.ragged(indptr, column)
        else:
            arrived[name] = route.rows(column)
    return arrived


def take(columns: Columns, rows: Int64) -> NodeData:
    """Return the nodes at `rows`, in that order."""
    features: Array | CsrRows | None = None
    if "features" in columns:
        features = columns["features"][rows]
    elif "sparse/indptr" in columns:
        indptr = columns["sparse/indptr"]
        places = edge_positions(indptr, rows)
        features = CsrRows(
            indptr=pointers(np.diff(indptr)[rows]),
            indices=columns["sparse/indices"][places],
            data=columns["sparse/data"][places],
            width=int(columns["sparse/width"][0]),
        )
    typed = {}
    for name, column in columns.items():
        if name.startswith("typed/"):
            kind = int(name.removeprefix("typed/"))
            typed[kind] = column[edge_positions(pointers(columns["type"] == kind), rows)]
    plain = {
        name: columns[name][rows] if name in columns else None
        for name in ("labels", "split", "type", "original_ids")
    }
    named = {
        name.removeprefix("named/"): column[rows]
        for name, column in columns.items()
        if name.startswith("named/")
    }
    return NodeData(features=features, typed_features=typed, named=named, **plain)
