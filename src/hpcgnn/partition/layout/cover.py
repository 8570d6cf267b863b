"""Vertex covers: the fewest rows and columns of a block that all of its edges touch."""

from __future__ import annotations

from ctypes import c_int64

import numpy as np

from hpcgnn.native import address
from hpcgnn.partition.layout.library import library
from hpcgnn.partition.routing import Array, Int64


def vertex_cover(begin: Int64, columns: Array, num_columns: int) -> tuple[Array, Array]:
    """Return a minimum vertex cover: masks of rows `[n]` and of columns `[num_columns]`.

    Of all minimum covers it is the one with the fewest columns: the same in every run.

    Args:
        begin: `[n + 1]`, first edge of each row.
        columns: `[E]`, the column of each edge.
    """
    begin = np.ascontiguousarray(begin, np.int64)
    columns = np.ascontiguousarray(columns, np.int32)
    rows_in, columns_in = (np.empty(n, np.uint8) for n in (len(begin) - 1, num_columns))
    library().hpcgnn_vertex_cover(
        c_int64(len(rows_in)),
        c_int64(num_columns),
        address(begin),
        address(columns),
        address(rows_in),
        address(columns_in),
    )
    return rows_in.astype(bool), columns_in.astype(bool)
