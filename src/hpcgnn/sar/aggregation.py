"""Sums, means, maxima and minima over in-neighbours, exact over all ranks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.comm.channel import Outgoing
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import IN_FLIGHT, MESSAGE_BYTES, SHORT_BYTES
from hpcgnn.errors import InputError
from hpcgnn.graph.features import HostRows, NodeFeatures
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar import products
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.hubs import RowSums
from hpcgnn.sar.products import gathered, readable, summed, wire_type
from hpcgnn.sar.stream import Payload, drive, stream, work
from hpcgnn.sar.turns import Progress, made_before
from hpcgnn.sar.vertex_cover import SumPlan, sum_plan

_COMPARED = 4 << 20  # bytes of constant features that are compared before each use
_COLUMNS = 16  # of features on the host that are summed at a time, on all ranks alike


def neighbour_sum(
    graph: PartitionedGraph,
    x: Tensor,
    *,
    weighted: bool = True,
    scale_N: Tensor | None = None,
) -> Tensor:
    """Return `y[i] = sum over edges j -> i of weight * x[j]`; float32 or float64, collective.

    Without `weighted`, or where the graph has no weights, every edge has weight 1.

    Args:
        x: `[n, F]`; the result has the same shape.
        scale_N: `[n]` in the accumulation dtype, factors of the sums. On a GPU only.
    """
    check_rows(graph, x, who="a sum over neighbours")
    after = None if scale_N is None else kernels.RowScale(scale_N)

    def times(edges: EdgeBlocks, rows_NF: Tensor, where: str, wire: torch.dtype) -> Tensor:
        return multiply(graph, edges, rows_NF, weighted, where, wire, after=after)

    def back(edges: EdgeBlocks, rows_NF: Tensor, where: str, wire: torch.dtype) -> Tensor:
        return multiply(graph, edges, rows_NF, weighted, where, wire, scale_N)

    return linear_sum(graph, x, times, back)


def in_degrees(graph: PartitionedGraph, *, weighted: bool = False) -> Tensor:
    """Return the number (or weight) of edges into each local node: float32 `[n]`. No messages."""
    return graph.derived(_InDegrees(weighted))


@dataclass(frozen=True)
class _InDegrees:
    weighted: bool

    def build(self, graph: PartitionedGraph) -> Tensor:
        if graph.whole is not None:
            return graph.whole.derived(self)[graph.whole_rows]
        blocks = graph.in_edges.blocks
        if not self.weighted:
            blocks = [replace(block, weight=None) for block in blocks]
        return weight_sums(graph, blocks).float()


def weight_sums(graph: PartitionedGraph, blocks: Sequence[Block]) -> Tensor:
    """Return the sum of edge weights (1 if None) per local row: float64 `[n]`. No messages."""
    device = graph.node_ids.device
    total_N = torch.zeros(graph.num_local_nodes, dtype=torch.float64, device=device)
    for block in blocks:
        if block.weight is None:
            rows = slice(None) if block.rows is None else block.rows.long()
            total_N[rows] += (block.end - block.begin).double()
        else:
            ones = torch.ones(block.num_columns, 1, dtype=torch.float64, device=device)
            kernels.spmm(block, ones, total_N[:, None])
    return total_N


def is_constant(graph: PartitionedGraph, x: NodeFeatures) -> bool:
    """Return whether `x` are the graph's own dense features and need no gradient."""
    own = graph.execution.cache_first and x is graph.features
    if isinstance(x, HostRows):
        return own and x.change is None
    return own and isinstance(x, Tensor) and not x.requires_grad and not x.is_inference()


@dataclass
class _Kept:
    """A cached aggregate, and the state of the features that it was computed from."""

    features: weakref.ref[Tensor] | None = None
    version: int = 0
    place: int = 0
    some: Tensor | None = None
    result: Tensor | None = None

    def is_of(self, x_NF: Tensor) -> bool:
        if self.features is None or self.features() is not x_NF or self.some is None:
            return False
        if (self.version, self.place) != (x_NF._version, x_NF.data_ptr()):
            return False
        return len(self.some) == 0 or torch.equal(self.some, _some_rows(x_NF))

    def note(self, x_NF: Tensor) -> None:
        self.version, self.features = x_NF._version, weakref.ref(x_NF)
        self.place, self.some = x_NF.data_ptr(), _some_rows(x_NF).clone()


def _some_rows(x_NF: Tensor) -> Tensor:
    """Return rows that show changes torch does not count, those through `.data` or NumPy.

    All rows of a small part, evenly spaced ones of a large part. No rows on a GPU: the host would
    wait for them.
    """
    x_NF = x_NF.detach()
    if x_NF.device.type != "cpu":
        return x_NF[:0]
    most = max(1, _COMPARED // max(1, x_NF.shape[1] * x_NF.itemsize))
    return x_NF[:: max(1, -(-len(x_NF) // most))]


@dataclass(frozen=True)
class _FirstSum:
    """The cache of a sum of the input features, keyed by the settings of the layer that sums."""

    kind: Hashable

    def build(self, graph: PartitionedGraph) -> _Kept:
        return _Kept()


def first_sum(
    graph: PartitionedGraph, kind: Hashable, aggregate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return a linear aggregation of the constant input features, cached by `kind`.

    It is computed in full precision, also under autocast. Features in host memory are aggregated a
    few columns at a time. Collective: if any rank replaced its features or changed them in place,
    all ranks compute the aggregate again.

    Args:
        kind: a frozen dataclass that identifies the aggregation.
        aggregate: function of a `[n, any]` tensor on the device.
    """
    x = graph.features
    if not isinstance(x, Tensor | HostRows):
        raise InputError("sums of constant features need dense features")
    x_NF = x.rows_NF if isinstance(x, HostRows) else x
    kept = graph.derived(_FirstSum(kind))
    fresh = graph.ring.comm.allreduce(int(kept.is_of(x_NF)), "min", where="first sum")
    if kept.result is None or not fresh:
        device = graph.node_ids.device
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            if isinstance(x, HostRows):
                kept.result = by_columns(x, device, aggregate)
            else:
                kept.result = aggregate(x_NF)
            kept.note(x_NF)
    graph.execution.keep_exact(kept.result)
    return kept.result


def by_columns(x: HostRows, device: torch.device, aggregate: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `aggregate` of all columns, with few of them on the device at a time; collective."""
    out_NF = torch.empty(x.shape, dtype=x.rows_NF.dtype, device=device)
    for low in range(0, x.shape[1], _COLUMNS):
        chosen = slice(low, low + _COLUMNS)
        out_NF[:, chosen] = aggregate(x.columns(chosen, device))
    return out_NF


# (edges of one direction, rows, name for error messages, wire dtype) to edges times rows.
Times = Callable[[EdgeBlocks, Tensor, str, torch.dtype], Tensor]


def linear_sum(
    graph: PartitionedGraph, x_NF: Tensor, times: Times, back: Times | None = None
) -> Tensor:
    """Return `times` of the in-edges and `x_NF`, with a gradient by `back` of the out-edges.

    Collective.

    Args:
        back: `times` by default.
    """
    result: Tensor = _LinearSum.apply(x_NF, graph, times, back or times)
    return result


class _LinearSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NF: Tensor, graph: PartitionedGraph, times: Times, back: Times
    ) -> Tensor:
        ctx.graph, ctx.back, ctx.dtype = graph, back, x_NF.dtype
        ctx.wire = wire_type(x_NF)
        return summed(times(graph.in_edges, x_NF, "sum forward", ctx.wire), x_NF.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad_NF = ctx.back(ctx.graph.out_edges, grads[0], "sum backward", ctx.wire)
        return grad_NF.to(ctx.dtype), None, None, None


@dataclass(frozen=True)
class Beside:
    """Callbacks that overlap work with messages, on a CPU.

    Each one that takes a `Progress` calls it to let pending messages advance.

    Attributes:
        before: called with a row number before a message is packed from rows below it, so that it
            can compute those rows first.
        meanwhile: called once messages are in flight, before the sums over local edges; it can
            compute rows that are not sent to any rank.
        after: called with the sums, and the row before which they are complete: once they include
            the local edges, if a message is awaited, after each message, and in the end with all
            rows, while messages to other ranks may still be in flight.
        spare: called while a message is awaited, once the features are not read any more; does a
            piece of work on rows that `after` was not called for, and returns whether there was
            any.
    """

    before: Callable[[int], None] | None = None
    meanwhile: Callable[[Progress], None] | None = None
    after: Callable[[Tensor, int, Progress], None] | None = None
    spare: Callable[[], bool] | None = None


@dataclass(frozen=True)
class _Complete:
    """The rows before which sums are complete: after the local edges, then after each message.

    Args:
        most: rows of a message, at most.
    """

    most: int

    def build(self, plan: SumPlan) -> list[int]:
        _, arrivals = plan.cut(self.most)
        ends = [plan.receivers[plan.rank].num_rows]
        for block in reversed(arrivals):
            reached = torch.nonzero(block.end > block.begin).flatten()
            rows = reached if block.rows is None else block.rows[reached]
            ends.append(min([ends[-1], *rows[:1].tolist()]))
        return ends[::-1]


def multiply(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    x_NF: Tensor,
    weighted: bool,
    where: str,
    wire: torch.dtype | None = None,
    scale_N: Tensor | None = None,
    after: kernels.RowScale | None = None,
    beside: Beside | None = None,
) -> Tensor:
    """Return the adjacency matrix (or its transpose, by `edges`) times features; collective.

    Args:
        wire: dtype of the rows in messages; that of `x_NF` by default.
        scale_N: `[n]` in the accumulation dtype, factors of the rows of `x_NF`.
        after: applied to the sums, on a GPU only.
        beside: work that is overlapped with messages.
    """
    beside = beside or Beside()
    x_NF = x_NF if x_NF.stride(-1) == 1 else x_NF.contiguous()
    width, wire, at_once = x_NF.shape[1], wire or x_NF.dtype, graph.execution.at_once
    x_NF = gathered(x_NF, wire)
    out_NF = graph.execution.arrays.empty(
        graph.num_local_nodes, width, dtype=sum_type(x_NF.dtype), device=x_NF.device
    )
    plan = sum_plan(graph, edges, weighted)
    if width == 0:
        return out_NF
    on_gpu = products.kernels_read_16_bit(x_NF.device)
    longest, in_flight = (MESSAGE_BYTES, 0) if on_gpu else (SHORT_BYTES, IN_FLIGHT)
    most = graph.ring.rows_per_message(width, wire, at_once=at_once, longest=longest)
    senders, arrivals = plan.cut(most)
    before = beside.before and partial(made_before, graph.ring, beside.before)
    outgoing = [_outgoing(block, x_NF, scale_N, before) for block in senders]
    graph.execution.newest = None
    exchange = Exchange(
        graph.ring,
        outgoing,
        arrivals.incoming(),
        width,
        wire,
        where=where,
        at_once=at_once,
        in_flight=in_flight,
    )
    if beside.meanwhile is not None:
        beside.meanwhile(exchange.progress)
    local, payload = [plan.receivers[edges.rank]], Payload((x_NF,), wire, gathered=True)
    sums, then, spare = RowSums(out_NF), beside.after, beside.spare
    for block, (x_MF,), arrival in drive(
        exchange,
        local,
        payload,
        arrivals,
        sums,
        by_row=True,
        idle=spare and (lambda: not exchange.packs and spare()),
        last=then and (lambda: then(out_NF, len(out_NF), exchange.progress)),
    ):
        here, scale_M = arrival is None, scale_N if arrival is None else None  # arrivals are scaled
        own = after if here or after is None else kernels.RowScale(after.scale_N)  # loops are local
        for rows in work(block, edges.num_parts):
            kernels.spmm(block, x_MF, out_NF, rows=rows, adds=not here, scale_M=scale_M, after=own)
            exchange.progress()
        if then is not None and exchange.awaits:
            complete = plan.derived(_Complete(most))[0 if arrival is None else arrival.index + 1]
            then(out_NF, sums.settled_before(complete), exchange.progress)
    return out_NF


def _outgoing(
    block: Block, x_NF: Tensor, scale_N: Tensor | None, before: Callable[[int], None] | None
) -> Outgoing:
    def pack(out_MF: Tensor) -> None:
        if before is not None and block.num_rows:
            read = block.columns[block.begin[0] : block.end[-1]]
            before(1 + int(read.max()) if len(read) else 0)
        sums = sum_type(x_NF.dtype)
        if out_MF.dtype == sums or products.kernels_read_16_bit(x_NF.device):
            kernels.spmm(block, x_NF, out_MF, adds=False, scale_M=scale_N)
        else:
            wide_MF = x_NF.new_empty(out_MF.shape, dtype=sums)
            kernels.spmm(block, x_NF, wide_MF, adds=False, scale_M=scale_N)
            out_MF.copy_(wide_MF)

    return Outgoing(block.peer, block.num_rows, pack)


def neighbour_max(graph: PartitionedGraph, x: Tensor, *, smallest: bool = False) -> Tensor:
    """Return `max over edges j -> i of x[j]` per node i (minimum with `smallest`); collective.

    Nodes without in-edges get 0. The gradient is shared evenly among the edges that attain the
    extremum, as in torch. Backward sends (extremum, share) of boundary destinations to the owners
    of the sources, and no gradients have to be returned.
    """
    check_rows(graph, x, who="an extremum over neighbours")
    result: Tensor = _Extremum.apply(x, graph, -1 if smallest else 1)
    return result


class _Extremum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, graph: PartitionedGraph, sign: int) -> Tensor:
        ctx.dtype, x_NF = x_NF.dtype, readable(x_NF).contiguous()
        wire = ctx.wire = wire_type(x_NF)
        # Rounded before the comparison, since backward has to find again which edges attain it.
        x_NF = x_NF.to(wire).to(x_NF.dtype)
        best_NF = torch.full_like(x_NF, -sign * torch.inf)
        ties_NF = torch.zeros(x_NF.shape, dtype=torch.int32, device=x_NF.device)
        edges = graph.in_edges
        payload = Payload((x_NF,), wire)
        for block, (x_MF,), progress in stream(
            graph, edges, payload, where="max forward", by_row=True
        ):
            for rows in work(block, edges.num_parts):
                kernels.spmm_max(block, x_MF, best_NF, ties_NF, sign=sign, rows=rows)
                progress()
        best_NF.masked_fill_(ties_NF == 0, 0)
        ctx.graph = graph
        graph.execution.keep_exact(x_NF, best_NF)  # backward compares them
        ctx.save_for_backward(x_NF, best_NF, ties_NF)
        return best_NF

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_NF, best_NF, ties_NF = ctx.saved_tensors
        graph: PartitionedGraph = ctx.graph
        share_NF = grads[0] / ties_NF.clamp(min=1)
        edges = graph.out_edges
        grad_NF = torch.zeros_like(x_NF, dtype=sum_type(x_NF.dtype))
        payload = Payload((best_NF, share_NF), ctx.wire)
        for block, (best_MF, share_MF), progress in stream(
            graph, edges, payload, where="max backward", sums=RowSums(grad_NF), by_row=True
        ):
            for rows in work(block, edges.num_parts):
                kernels.spmm_max_backward(block, best_MF, share_MF, x_NF, grad_NF, rows=rows)
                progress()
        return grad_NF.to(ctx.dtype), None, None
