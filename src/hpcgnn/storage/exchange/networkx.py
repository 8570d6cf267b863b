"""Conversion of networkx graphs to graph.h5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import (
    EDGE_NAMES,
    MASKS,
    Form,
    array_of,
    check_labels_as,
    edges_of,
    nodes_of,
    write,
)
from hpcgnn.storage.importers.source import Source

_EDGES = {"weight": "edge_weight"}


def from_networkx(
    graph: Any,
    path: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    labels_as: str | None = None,
    compress: bool = False,
    force: bool = False,
) -> Path:
    """Write graph.h5 from a networkx graph of any kind; one process, without MPI.

    The nodes are numbered in the graph's own order. Their names are kept: integers as original
    ids, anything else as text. Each edge of an undirected graph is stored in both directions.
    Attributes are recognised by PyTorch Geometric's names (`x`, `y`, `train_mask`, ...; for edges
    `weight` too, which is 1 for edges without it). Other attributes that every node has, numbers
    or rows of numbers, become named arrays. A node without `y` has no known label.

    Args:
        names: a mapping from attribute names to PyTorch Geometric's, such as `{"club": "y"}`.
        labels_as, compress, force: see `from_pyg`.

    Raises:
        InputError: `graph` is no graph, or one that graph.h5 can't hold.
        OutputError: the file can't be written.
    """
    check_labels_as(labels_as)
    if not (hasattr(graph, "is_directed") and hasattr(graph, "adjacency")):
        raise InputError("is not a networkx graph", value=type(graph).__name__)
    form, file, given = Form(), Path(type(graph).__name__), dict(names or {})
    ids = list(graph.nodes)
    arrays, left_out = _columns([graph.nodes[node] for node in ids], given)
    notes = [f"ignored of the nodes: {', '.join(left_out)}"] if left_out else []
    if "original_ids" not in arrays and ids != list(range(len(ids))):
        if all(type(node) is int and 0 <= node < 1 << 63 for node in ids):
            arrays["original_ids"] = np.array(ids, np.int64)
        else:
            texts = [str(node) for node in ids]
            if len(set(texts)) == len(ids) and all(texts):
                arrays["original_ids"] = texts
            else:
                notes.append(
                    "its nodes are numbered instead of named, since some of their names are equal "
                    "as text or empty"
                )
    nodes = nodes_of(file, arrays, len(ids), form, labels_as=labels_as)
    nodes.notes += notes
    row = {node: k for k, node in enumerate(ids)}
    edges = list(graph.edges(data=True))
    if not graph.is_directed():
        edges += [(b, a, data) for a, b, data in edges if a != b]
    ends = np.array([[row[a], row[b]] for a, b, _ in edges], np.int64).reshape(-1, 2).T
    columns, left_out = _columns([data for _, _, data in edges], _EDGES | given)
    left_out += sorted(columns.keys() - set(EDGE_NAMES))
    if left_out:
        nodes.notes.append(f"ignored of the edges: {', '.join(left_out)}")
    kept = {name: columns[name] for name in EDGE_NAMES if name in columns}
    chunks = edges_of(file, ends, kept, form)
    source = Source(file, chunks, num_nodes=len(ids), rows_as_given=True, nodes=nodes)
    return write(source, path, form, "from_networkx", force=force, compress=compress)


def _columns(
    rows: list[Mapping[str, Any]], names: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return attributes of nodes or edges as arrays, and the names of those that can't be one."""
    absent: dict[str, Any] = {"edge_weight": 1.0, "y": None} | dict.fromkeys(MASKS, False)
    arrays, left_out = {}, []
    for name in dict.fromkeys(name for data in rows for name in data):
        known = names.get(name, name)
        values = [data.get(name) for data in rows]
        if known in absent:
            values = [absent[known] if value is None else value for value in values]
        if known == "y":
            values = _with_unknown(values)
        array = None if any(value is None for value in values) else array_of(values)
        if array is None or known in arrays:
            left_out.append(str(name))
        else:
            arrays[known] = array
    return arrays, left_out


def _with_unknown(labels: list[Any]) -> list[Any]:
    """Replace None among labels by -1 if the other labels are integers, else by NaN."""
    known = [label for label in labels if label is not None]
    whole = np.asarray(known).dtype.kind in "iub" if known else True
    like = np.full(np.shape(known[0]) if known else (), -1 if whole else np.nan)
    return [like if label is None else label for label in labels]
