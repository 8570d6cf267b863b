"""The rows that the nodes have in an earlier graph, matched by the user's ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.ids import IdTable
from hpcgnn.storage.importers.names import NameStore
from hpcgnn.storage.importers.slabs import sorted_slabs
from hpcgnn.storage.importers.spool import Records, Scratch
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.schema import EARLIER_ROW

_ENTRY = np.dtype([("id", np.int64), ("row", np.int64), ("earlier", np.int64)])
_MATCH = np.dtype([("row", np.int64), ("earlier", np.int64)])
_ROWS = 1 << 18


def knows_rows(path: Path) -> bool:
    """Return whether rows of the graph that the file's encoding goes back to are known."""
    with GraphFile(path) as graph:
        encoding = graph.read_encoding()
        return encoding is not None and (not encoding.like or EARLIER_ROW in graph.array_names)


def earlier_rows(
    path: Path, store: NameStore | None, table: IdTable | None, num_nodes: int, scratch: Scratch
) -> Iterator[np.ndarray]:
    """Yield int64 chunks: the row of each node in an earlier graph, -1 if it is not there.

    Args:
        path: the earlier graph; if it was itself read like another graph, the rows are those there.
        store: the texts that the ids stand for; None: ids are numbers.
        table: the ids of the nodes; None: the rows are the ids.

    Raises:
        InputError: the file of the earlier graph is damaged.
    """
    joined = scratch.records(_ENTRY)
    _add_nodes(joined, table, num_nodes)
    with GraphFile(path) as graph:
        _add_earlier(joined, graph, store)
    matches = scratch.records(_MATCH)
    for slab in sorted_slabs(joined, scratch, ("id",), whole=True):
        # A node of the new graph comes before the same node of the earlier one.
        same = np.flatnonzero(slab["id"][1:] == slab["id"][:-1])
        earlier = slab["earlier"].copy()
        earlier[same] = slab["earlier"][same + 1]
        here = slab["row"] >= 0
        found = np.empty(int(here.sum()), _MATCH)
        found["row"], found["earlier"] = slab["row"][here], earlier[here]
        matches.append(found)
    for slab in sorted_slabs(matches, scratch, ("row",), whole=False):
        yield np.ascontiguousarray(slab["earlier"])


def _add_nodes(joined: Records, table: IdTable | None, num_nodes: int) -> None:
    if table is not None:
        for chunk in table.entries.chunks():
            joined.append(_entries(chunk["id"], chunk["row"], -1))
        return
    for low in range(0, num_nodes, _ROWS):
        rows = np.arange(low, min(num_nodes, low + _ROWS))
        joined.append(_entries(rows, rows, -1))


def _add_earlier(joined: Records, graph: GraphFile, store: NameStore | None) -> None:
    encoding = graph.read_encoding()
    through = encoding is not None and encoding.like != ""
    for low in range(0, graph.num_nodes, _ROWS):
        high = min(graph.num_nodes, low + _ROWS)
        data = graph.read_nodes(low, high, ("original_ids", *(["named"] if through else [])))
        rows = _checked(data.named[EARLIER_ROW], graph) if through else np.arange(low, high)
        ids = np.arange(low, high) if data.original_ids is None else data.original_ids
        if store is not None and graph.names is not None:
            import pyarrow as pa

            ids = store.codes(pa.array(graph.names.texts(low, high), pa.string()))
        known = rows >= 0
        joined.append(_entries(ids[known], -1, rows[known]))


def _checked(rows: np.ndarray, graph: GraphFile) -> np.ndarray:
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise InputError(
            "must be a number for each node", file=graph.path, dataset=EARLIER_ROW, value=rows.dtype
        )
    return rows


def _entries(ids: np.ndarray, rows: np.ndarray | int, earlier: np.ndarray | int) -> np.ndarray:
    out = np.empty(ids.shape[0], _ENTRY)
    out["id"], out["row"], out["earlier"] = ids, rows, earlier
    return out
