"""Conversion of SciPy's sparse matrices to graph.h5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import (
    Form,
    array_of,
    check_labels_as,
    edges_of,
    ids_of,
    nodes_of,
    write,
)
from hpcgnn.storage.importers.source import Source


def from_scipy(
    matrix: Any,
    path: str | Path,
    *,
    weights: bool = True,
    labels_as: str | None = None,
    compress: bool = False,
    force: bool = False,
    **nodes: Any,
) -> Path:
    """Write graph.h5 from a square sparse matrix; one process, without MPI.

    Entry (i, j) is an edge from i to j. Its value is the edge's weight, unless all values are 1.

        hpcgnn.from_scipy(adjacency, "graph.h5", x=features, y=labels, train_mask=train)

    Args:
        weights: False leaves the values out.
        labels_as, compress, force: see `from_pyg`.
        nodes: arrays with one row per node: `x` (dense or sparse), `y`, `train_mask`,
            `val_mask`, `test_mask`, `node_type`, `original_ids` (numbers or texts); others become
            named arrays.

    Raises:
        InputError: `matrix` is not a square sparse matrix, is boolean and stores an entry that is
            False, or graph.h5 can't hold the data.
        OutputError: the file can't be written.
    """
    check_labels_as(labels_as)
    import scipy.sparse

    if not scipy.sparse.issparse(matrix) or matrix.shape[0] != matrix.shape[1]:
        shape = getattr(matrix, "shape", type(matrix).__name__)
        raise InputError("must be a square sparse matrix of SciPy", value=shape)
    entries = matrix.tocoo()
    if entries.data.dtype.kind == "b" and not entries.data.all():
        raise InputError("stores entries that are False: call matrix.eliminate_zeros()")
    index = np.stack([entries.row, entries.col]).astype(np.int64)
    arrays = {}
    if weights and entries.data.dtype.kind != "b" and not (entries.data == 1).all():
        arrays["edge_weight"] = entries.data
    form, file, count = Form(), Path("matrix"), int(matrix.shape[0])
    given = {
        name: ids_of(values) if name == "original_ids" else array_of(values)
        for name, values in nodes.items()
        if values is not None
    }
    source = Source(
        file,
        edges_of(file, index, arrays, form),
        num_nodes=count,
        rows_as_given=True,
        nodes=nodes_of(file, given, count, form, labels_as=labels_as),
    )
    return write(source, path, form, "from_scipy", force=force, compress=compress)
