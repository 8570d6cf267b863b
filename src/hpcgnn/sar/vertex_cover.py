"""The fewest rows that carry a sum from one part to another.

For sums, an edge between parts is served either by sending its source row, or by sending a partial
sum for its destination. The cheapest choice is a minimum vertex cover of the block's bipartite
graph, found from a maximum matching (König 1931). Block (r, s) becomes a product R S: the sender
multiplies by S, with one message row per chosen vertex, and the receiver by R. The sender stores
the edges that it sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from hpcgnn import kernels
from hpcgnn.comm.channel import ring_order
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block, Derived
from hpcgnn.partition.layout.cover import vertex_cover
from hpcgnn.sar.stream import Chunks, chunks

WORTHWHILE = 0.95  # a cover is used if it needs at most this share of the plain rows


@dataclass(frozen=True, eq=False)
class SumPlan(Derived):
    """A plan of `y = A x` over the ranks: per peer, S before sending and R on arrival.

    `senders[p]` maps local rows to message rows for peer p; `receivers[p]` maps message rows from
    peer p to local rows; `receivers[rank]` is the local block.
    """

    rank: int
    senders: list[Block]
    receivers: list[Block]

    @property
    def blocks(self) -> list[Block]:
        """The blocks whose columns arrive in messages."""
        return self.receivers

    def cut(self, most: int) -> tuple[list[Block], Chunks]:
        """Return remote senders and receivers in ring order, in messages of at most `most` rows."""
        size = len(self.senders)
        senders = [
            kernels.rows_between(self.senders[peer], low, high)
            for peer in ring_order(self.rank, size, +1)
            for low, high in chunks(self.senders[peer].num_rows, most)
        ]
        return senders, Chunks(self, ring_order(self.rank, size, -1), most)


def sum_plan(graph: PartitionedGraph, edges: EdgeBlocks, weighted: bool) -> SumPlan:
    """Return the plan of one direction; collective on first use, then cached."""
    inward, fewest = edges is graph.in_edges, graph.execution.fewest_rows
    return graph.derived(_Planned(inward, weighted, fewest))


@dataclass(frozen=True)
class _Planned:
    inward: bool
    weighted: bool
    fewest_rows: bool

    def build(self, graph: PartitionedGraph) -> SumPlan:
        edges = graph.in_edges if self.inward else graph.out_edges
        return _build(graph, edges, self.weighted, self.fewest_rows)


def _build(
    graph: PartitionedGraph, edges: EdgeBlocks, weighted: bool, fewest_rows: bool
) -> SumPlan:
    comm = graph.ring.comm
    receivers, requests, values = [], [], []
    for block in edges.blocks:
        block = block if weighted else replace(block, weight=None)
        split = None
        if block.peer != edges.rank and fewest_rows:
            split = _split(block)
        if split is None:
            receivers.append(block)
            requests.append(np.empty(0, np.int64))
            values.append(np.empty(0, np.float32))
        else:
            receivers.append(split.receiver)
            requests.append(split.request)
            values.append(split.values)
    wanted = comm.alltoallv(requests, where="rows of sums")
    weights = comm.alltoallv(values, where="weights of sums") if weighted else None
    device, senders = graph.node_ids.device, []
    most = max((len(rows) for rows in edges.send_rows), default=0)
    places = torch.arange(most + 1, device=device)  # shared by all peers
    for peer, request in enumerate(wanted):
        send_rows = edges.send_rows[peer]
        if len(request) == 0:
            begin, end = places[: len(send_rows)], places[1 : len(send_rows) + 1]
            senders.append(Block(peer, graph.num_local_nodes, None, begin, end, send_rows))
            continue
        num_rows = int(request[0])
        indptr, positions = request[1 : num_rows + 2], request[num_rows + 2 :]
        weight = None if weights is None else weights[peer]
        columns = send_rows.cpu().numpy()[positions]
        made = _block(peer, graph.num_local_nodes, None, indptr, columns, weight)
        senders.append(made.to(device))
    return SumPlan(edges.rank, senders, [r.to(device) for r in receivers])


@dataclass(frozen=True)
class _Split:
    receiver: Block
    request: np.ndarray  # [rows, indptr.., columns..] of S, columns as positions in the send list
    values: np.ndarray  # weights of the edges of S; pulled rows have weight 1


def _split(block: Block) -> _Split | None:
    """Return R and S of a minimum vertex cover; None if the send list is about as short."""
    if block.num_rows == 0:
        return None
    begin, end = block.begin.cpu().numpy(), block.end.cpu().numpy()
    columns = block.columns.cpu().numpy()[begin[0] : end[-1]]
    counts = end - begin
    row_of_edge = np.repeat(np.arange(len(counts)), counts)
    pushed, pulled = vertex_cover(_starts(counts), columns, block.num_columns)
    if pulled.sum() + pushed.sum() > WORTHWHILE * block.num_columns:
        return None
    weight = None if block.weight is None else block.weight.cpu().numpy()[begin[0] : end[-1]]
    local_rows = np.arange(len(counts)) if block.rows is None else block.rows.cpu().numpy()
    num_pulled, num_pushed = int(pulled.sum()), int(pushed.sum())
    sums = np.flatnonzero(pushed)
    stays = pulled[columns]

    message_row = np.cumsum(pulled) - 1
    rows = np.concatenate([row_of_edge[stays], sums])
    cols = np.concatenate([message_row[columns[stays]], num_pulled + np.arange(num_pushed)])
    edge_weight = (
        None
        if weight is None
        else np.concatenate([weight[stays], np.ones(num_pushed, weight.dtype)])
    )
    order = np.lexsort((cols, rows))
    kept, indptr = _compress(rows[order])
    receiver = _block(
        block.peer,
        num_pulled + num_pushed,
        local_rows[kept],
        indptr,
        cols[order],
        None if edge_weight is None else edge_weight[order],
    )

    goes = ~stays
    pushed_counts = np.bincount(row_of_edge[goes], minlength=len(counts))[sums]
    sender_indptr = np.concatenate([np.arange(num_pulled), num_pulled + _starts(pushed_counts)])
    request = np.concatenate(
        [[num_pulled + num_pushed], sender_indptr, np.flatnonzero(pulled), columns[goes]]
    )
    values = np.ones(num_pulled + int(goes.sum()), np.float32)
    if weight is not None:
        values[num_pulled:] = weight[goes]
    return _Split(receiver, request.astype(np.int64), values)


def _compress(sorted_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept, counts = np.unique(sorted_rows, return_counts=True)
    return kept, _starts(counts)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _block(
    peer: int,
    num_columns: int,
    rows: np.ndarray | None,
    indptr: np.ndarray,
    columns: np.ndarray,
    weight: np.ndarray | None,
) -> Block:
    pointer = torch.from_numpy(indptr.astype(np.int64))
    return Block(
        peer=peer,
        num_columns=num_columns,
        rows=None if rows is None else torch.from_numpy(rows.astype(np.int32)),
        begin=pointer[:-1],
        end=pointer[1:],
        columns=torch.from_numpy(columns.astype(np.int32)),
        weight=None if weight is None else torch.from_numpy(weight.astype(np.float32)),
    )
