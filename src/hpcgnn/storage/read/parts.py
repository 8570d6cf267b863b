"""One part of a partitioned graph as it lies on disk, and the rules it obeys.

parts/00000/nodes/ids int64 [n]   rows in graph.h5 of the local nodes, in local order
parts/00000/nodes/...             as in graph.h5, local rows
parts/00000/in/...                an `EdgeLists` of the edges into local nodes
parts/00000/out/...               the same of the reversed graph; absent where it is symmetric
exchange/sizes int64 [P, 2]       nodes and in-edges of each part
exchange/in, exchange/out int32 [P, P]   rows that part p sends to part q
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hpcgnn.storage import checks, named
from hpcgnn.storage.checks import Place
from hpcgnn.storage.read.nodes import NodeData


@dataclass
class EdgeLists:
    """Edges into one part r by source part s; local rows and columns are int32.

    Block s holds the edges `edge_ptr[s] .. edge_ptr[s+1]` and the rows `row_ptr[s] ..
    row_ptr[s+1]`: `rows` are the local destinations with an edge in the block (ascending), `counts`
    how many each has, `columns` the local source (s == r) or the place in the receive list from s,
    ascending in each row. `recv_ptr`, `send_ptr` int64 [P+1] delimit the lists of each peer
    (empty for r itself), `send_rows` are the local rows sent, ascending for each peer.
    `labels` and `split` of the edges are None in the reversed graph.
    """

    edge_ptr: np.ndarray
    row_ptr: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    columns: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    features: np.ndarray | None
    recv_ptr: np.ndarray
    send_ptr: np.ndarray
    send_rows: np.ndarray
    labels: np.ndarray | None = None
    split: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in found.items() if array is not None}


@dataclass
class Part:
    """One part; `ids` and `original_ids` int64 [n]. `out_edges` is None in a symmetric graph."""

    index: int
    num_parts: int
    ids: np.ndarray
    original_ids: np.ndarray | None
    nodes: NodeData
    in_edges: EdgeLists
    out_edges: EdgeLists | None

    @property
    def num_nodes(self) -> int:
        return self.ids.shape[0]

    @property
    def num_edges(self) -> int:
        return self.in_edges.columns.shape[0]

    def sides(self) -> dict[str, EdgeLists]:
        """`in`, and `out` where the graph is not symmetric."""
        sides = {"in": self.in_edges}
        return sides if self.out_edges is None else sides | {"out": self.out_edges}

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their full dataset name."""
        found = {"nodes/ids": self.ids, **self.nodes.arrays()}
        if self.original_ids is not None:
            found["nodes/original_ids"] = self.original_ids
        for side, lists in self.sides().items():
            found |= {f"{side}/{name}": array for name, array in lists.arrays().items()}
        return {f"{part_name(self.index)}/{name}": array for name, array in found.items()}


def part_name(index: int) -> str:
    return f"parts/{index:05d}"


def check_ids(ids: np.ndarray, num_nodes: int, place: Place) -> None:
    """Each in `0 .. num_nodes - 1`, none twice."""
    checks.in_range(ids, 0, num_nodes, place)
    ordered = np.sort(ids)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise place.error("a node appears twice", ordered[1:][twice][0])


def check_edges(
    lists: EdgeLists, index: int, num_local: int, num_relations: int, place: Place
) -> None:
    """Every rule of `EdgeLists`; `place` is the group they come from.

    Raises:
        InputError: the first rule broken.
    """
    checks.pointers(lists.edge_ptr, lists.columns.shape[0], place.below("edge_ptr"))
    checks.pointers(lists.row_ptr, lists.rows.shape[0], place.below("row_ptr"))
    checks.pointers(lists.send_ptr, lists.send_rows.shape[0], place.below("send_ptr"))
    checks.pointers(lists.recv_ptr, int(lists.recv_ptr[-1]), place.below("recv_ptr"))
    checks.in_range(lists.rows, 0, num_local, place.below("rows"))
    checks.in_range(lists.counts, 1, 1 << 31, place.below("counts"))
    checks.in_range(lists.send_rows, 0, num_local, place.below("send_rows"))
    for name in ("recv_ptr", "send_ptr"):
        pointer = getattr(lists, name)
        if pointer[index] != pointer[index + 1]:
            raise place.below(name).error(f"part {index} must exchange nothing with itself")
    for peer in range(lists.edge_ptr.shape[0] - 1):
        _check_block(lists, peer, num_local if peer == index else None, place)
    starts = np.cumsum(lists.counts, dtype=np.int64)
    checks.ascending_in_rows(lists.columns, starts, place.below("columns"))
    if lists.weight is not None:
        checks.finite(lists.weight, place.below("weight"))
    if lists.features is not None:
        checks.finite(lists.features, place.below("features"))
    if lists.relation is not None:
        checks.in_range(lists.relation, 0, num_relations, place.below("relation"))
    if lists.labels is not None:
        named.check_labels(lists.labels, place.below("labels"))
    if lists.split is not None:
        checks.in_range(lists.split, 0, 4, place.below("split"))


def _check_block(lists: EdgeLists, peer: int, own_width: int | None, place: Place) -> None:
    rows = slice(int(lists.row_ptr[peer]), int(lists.row_ptr[peer + 1]))
    edges = slice(int(lists.edge_ptr[peer]), int(lists.edge_ptr[peer + 1]))
    sent = slice(int(lists.send_ptr[peer]), int(lists.send_ptr[peer + 1]))
    received = int(lists.recv_ptr[peer + 1] - lists.recv_ptr[peer])
    checks.monotone(lists.rows[rows], place.below("rows"), strictly=True)
    checks.monotone(lists.send_rows[sent], place.below("send_rows"), strictly=True)
    total = int(lists.counts[rows].sum(dtype=np.int64))
    if total != edges.stop - edges.start:
        raise place.below("counts").error(f"must add up to the edges of block {peer}", total)
    width = received if own_width is None else own_width
    checks.in_range(lists.columns[edges], 0, width, place.below("columns"))
