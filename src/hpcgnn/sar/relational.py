"""Sums over in-neighbours with one weight matrix per relation, exact over all ranks.

    y_i = sum_r W_r^T sum_{j in N_r(i)} f_ir x_j,  f_ir = 1, or 1 / |N_r(i)| for means

is linear in x, so its backward is the same sum over the reversed graph: forward streams the x_j of
boundary sources, backward the gradients g_i of boundary destinations to the owners of the sources,
which sum q_jr = sum_i f_ir g_i and need no other row for

    dL/dx_j = sum_r W_r q_jr,  dL/dW_r = sum_j x_j q_jr^T.

Nothing is fetched again and nothing sent back. See `relation_pairs` for the order of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.hubs import HubRows, RowSums, Totals
from hpcgnn.sar.products import exceeds_chunk, product_of_rows, readable, wire_type
from hpcgnn.sar.relation_pairs import (
    EdgeList,
    RelationPairs,
    by_column,
    by_row,
    count_pairs,
    edge_list,
    multiply,
    slab_size,
)
from hpcgnn.sar.stream import Payload, stream

EDGE_COST = 12  # multiplications that take as long as gathering one number for an edge


def relational_sum(
    graph: PartitionedGraph, x_NF: Tensor, weight_RFG: Tensor, *, mean: bool
) -> Tensor:
    """Return the sum over relations, `[n, F]` to `[n, G]`, in the weights' dtype; collective.

    Args:
        mean: take the mean over the in-neighbours of each relation instead of their sum.

    Raises:
        InputError: the graph has no relations.
    """
    if not graph.num_relations:
        raise InputError("the graph has no relations; convert it from triples")
    check_rows(graph, x_NF, who="a sum over relations", width=weight_RFG.shape[1])
    wire = wire_type(x_NF)
    with torch.autocast(x_NF.device.type, enabled=False):
        result: Tensor = _RelationalSum.apply(x_NF, weight_RFG, graph, mean, wire)
    return result


class _RelationalSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        weight_RFG: Tensor,
        graph: PartitionedGraph,
        mean: bool,
        wire: torch.dtype,
    ) -> Tensor:
        ctx.graph, ctx.mean, ctx.wire, ctx.dtype = graph, mean, wire, x_NF.dtype
        x_NF = readable(x_NF)
        ctx.save_for_backward(x_NF, weight_RFG)
        out_NG = weight_RFG.new_zeros(len(x_NF), weight_RFG.shape[2])
        edges, widths = graph.in_edges, tuple(weight_RFG.shape[1:])
        if mean:
            mean_factors(graph, inward=True)  # collective, also for ranks that receive no block
        payload = Payload((x_NF.contiguous(),), wire)
        sums = _slab_sums(graph, edges, payload, out_NG)
        for block, (x_MF,), progress in stream(graph, edges, payload, where="relations forward"):
            pairs = _forward_pairs(graph, block, mean, *widths)
            for slab in pairs.slabs:
                pairs.add(slab, multiply(slab, pairs.collect(slab, x_MF), weight_RFG), out_NG)
                sums.added()
                progress()
        sums.end()
        return out_NG

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, weight_RFG = ctx.saved_tensors
        graph: PartitionedGraph = ctx.graph
        edges, weight_RGF = graph.out_edges, weight_RFG.transpose(1, 2)
        grad_weight = Totals([weight_RFG])
        grad_weight_RFG = grad_weight.parts[0]
        grad_x_NF = torch.zeros_like(x_NF, dtype=weight_RFG.dtype)
        if ctx.mean:
            mean_factors(graph, inward=False)
        payload = Payload((grads[0].contiguous(),), ctx.wire)
        sums = _slab_sums(graph, edges, payload, grad_x_NF)
        for block, (g_MG,), progress in stream(graph, edges, payload, where="relations backward"):
            pairs = graph.derived(BackwardPairs(Cut.of(block), ctx.mean))
            for slab in pairs.slabs:
                q_SG = pairs.collect(slab, g_MG)
                if ctx.needs_input_grad[0]:
                    pairs.add(slab, multiply(slab, q_SG, weight_RGF), grad_x_NF)
                    sums.added()
                x_SF = x_NF.index_select(0, pairs.rows[slab.low : slab.high]).to(q_SG.dtype)
                for relation, first, last in slab.parts:
                    own_SF, weight_FG = x_SF[first:last], grad_weight_RFG[relation]
                    if exceeds_chunk(own_SF, weight_FG):
                        weight_FG += product_of_rows(own_SF, q_SG[first:last])
                    else:
                        weight_FG.addmm_(own_SF.t(), q_SG[first:last])
                grad_weight.added()
                progress()
        sums.end()
        return grad_x_NF.to(ctx.dtype), grad_weight.result()[0], None, None, None


def _slab_sums(
    graph: PartitionedGraph, edges: EdgeBlocks, payload: Payload, out_NG: Tensor
) -> RowSums:
    """Return the sums of rows to which slabs of pairs add, several per message."""
    ring = graph.ring
    most = ring.rows_per_message(
        payload.layout.columns, payload.dtype, at_once=graph.execution.at_once
    )
    sums = RowSums(out_NG)
    hubs = HubRows(len(out_NG), most, local=True, slab=slab_size(out_NG.device))
    sums.begin(edges.derived(hubs))
    return sums


def _forward_pairs(
    graph: PartitionedGraph, block: Block, mean: bool, inputs: int, outputs: int
) -> RelationPairs:
    """Return pairs by row or by column, whichever is less work at these widths; cached."""
    cut = Cut.of(block)
    edges, rows, columns = graph.derived(PairCounts(cut, mean))
    sum_first = rows * inputs * outputs + EDGE_COST * edges * inputs
    product_first = columns * inputs * outputs + EDGE_COST * edges * outputs
    return graph.derived(ForwardPairs(cut, mean, row_wise=sum_first <= product_first))


@dataclass(frozen=True)
class Cut:
    """A range of columns of one block of one direction's edges."""

    peer: int
    first: int
    num_columns: int

    @classmethod
    def of(cls, block: Block) -> Cut:
        return cls(block.peer, block.column_offset, block.num_columns)

    def edges(self, graph: PartitionedGraph, *, inward: bool, mean: bool) -> tuple[Block, EdgeList]:
        """Return the cut of that block, and the list of its edges."""
        edges = graph.in_edges if inward else graph.out_edges
        block = edges.blocks[self.peer]
        low = self.first - block.column_offset
        block = kernels.columns_between(block, low, low + self.num_columns)
        factors = mean_factors(graph, inward=inward) if mean else None
        return block, edge_list(block, None if factors is None else factors[self.peer])


@dataclass(frozen=True)
class PairCounts:
    """Numbers of edges, of pairs (relation, row) and of pairs (relation, column) of a cut."""

    cut: Cut
    mean: bool

    def build(self, graph: PartitionedGraph) -> tuple[int, int, int]:
        _, edges = self.cut.edges(graph, inward=True, mean=self.mean)
        return len(edges.row), count_pairs(edges, "row"), count_pairs(edges, "column")


@dataclass(frozen=True)
class ForwardPairs:
    cut: Cut
    mean: bool
    row_wise: bool

    def build(self, graph: PartitionedGraph) -> RelationPairs:
        block, edges = self.cut.edges(graph, inward=True, mean=self.mean)
        if self.row_wise:
            return by_row(block, edges, graph.num_relations, even=True)
        return by_column(block, edges, graph.num_relations)


@dataclass(frozen=True)
class BackwardPairs:
    cut: Cut
    mean: bool

    def build(self, graph: PartitionedGraph) -> RelationPairs:
        block, edges = self.cut.edges(graph, inward=False, mean=self.mean)
        return by_row(block, edges, graph.num_relations, even=False)


def mean_factors(graph: PartitionedGraph, *, inward: bool) -> list[Tensor]:
    """Return 1 / (in-edges of the edge's relation at its destination) per block and edge: float32.

    For `graph.in_edges`, or for `graph.out_edges`, whose columns are the destinations; their owners
    count them. Collective on first use, then cached.
    """
    return graph.derived(_MeanFactors())[0 if inward else 1]


@dataclass(frozen=True)
class _MeanFactors:
    def build(self, graph: PartitionedGraph) -> tuple[list[Tensor], list[Tensor]]:
        return _count(graph)


def _count(graph: PartitionedGraph) -> tuple[list[Tensor], list[Tensor]]:
    relations, device = graph.num_relations, graph.node_ids.device
    edges = graph.in_edges
    keys_E = torch.cat(
        [_local_rows(block) * relations + _relation(block) for block in edges.blocks]
    )
    keys, inverse_E, counts = torch.unique(keys_E, return_inverse=True, return_counts=True)
    share = 1 / counts.float()
    inward = list(share[inverse_E].split([len(block.columns) for block in edges.blocks]))
    del keys_E, inverse_E

    edges = graph.out_edges
    asked, places = [], []
    for block in edges.blocks:
        wanted, place_E = torch.unique(
            block.columns.long() * relations + _relation(block), return_inverse=True
        )
        asked.append(wanted.cpu().numpy())
        places.append(place_E)
    answers = []
    requests = graph.ring.comm.alltoallv(asked, where="relation counts")
    for peer, request in enumerate(requests):
        wanted = torch.from_numpy(request).to(device)
        column, relation = wanted // relations, wanted % relations
        local = column if peer == edges.rank else edges.send_rows[peer].long()[column]
        answers.append(share[torch.searchsorted(keys, local * relations + relation)].cpu().numpy())
    replies = graph.ring.comm.alltoallv(answers, where="relation counts")
    outward = [
        torch.from_numpy(reply).to(device)[place_E]
        for reply, place_E in zip(replies, places, strict=True)
    ]
    return inward, outward


def _local_rows(block: Block) -> Tensor:
    """Return the local row of each edge: int64."""
    rows = torch.arange(block.num_rows, device=block.device)
    local = rows if block.rows is None else block.rows.long()
    return torch.repeat_interleave(local, block.end - block.begin)


def _relation(block: Block) -> Tensor:
    """Return the relation of each edge; empty if the block has no edges."""
    return block.columns.new_empty(0) if block.relation is None else block.relation
