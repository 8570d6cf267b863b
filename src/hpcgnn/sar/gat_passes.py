"""The forward and backward passes of graph attention over the ring.

Backward computes gradients at the sources' owners, or at the destinations where rows were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn import kernels
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar.attention import (
    AttentionSettings,
    edge_dropout,
    exchange_halo_ids,
    local_blocks,
)
from hpcgnn.sar.hubs import Returned, RowSums, SoftmaxSums, Totals
from hpcgnn.sar.products import RowLayout, gathered
from hpcgnn.sar.stream import Payload, return_gradients, stream, stream_and_return, untouched, work
from hpcgnn.sar.turns import InTurn, Progress

_LINE = 64  # bytes of a cache line


class ForwardPass:
    """The forward pass over all blocks, local ones first."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        product_dtype: torch.dtype | None,
        z_NK: Tensor,
        s_NH: Tensor,
        t_NH: Tensor,
        edge_HD: Tensor | None,
    ) -> None:
        self.graph, self.settings = graph, settings
        self.product_dtype = product_dtype
        self.z_NK, self.s_NH, self.t_NH, self.edge_HD = z_NK, s_NH, t_NH, edge_HD
        self.kept: list[Tensor] | None = None if graph.mode == "sar" else []
        self.start_NK: Tensor | None = None
        self._self_loops = False  # the local block's kernel adds self-loops, on a GPU
        self.row_max_NH, self.row_sum_NH = torch.empty_like(t_NH), torch.empty_like(t_NH)
        self.out_NK = graph.execution.arrays.like(z_NK, t_NH.dtype)

    def _begin(self) -> Iterator[Block]:
        """Initialise the softmax, and yield the local blocks that still have to be added.

        Self-loops without dropout and edge scores initialise it directly, without a pass over them.
        A GPU's kernels add them with the local edges.
        """
        settings, z_NK = self.settings, self.z_NK
        local = local_blocks(self.graph, self.graph.in_edges, settings.self_loops)
        whole = kernels.takes_whole_blocks(z_NK.device)
        self._self_loops = not whole and settings.self_loops and self.edge_HD is None
        if self._self_loops:
            yield from local[1:]
            return
        plain = settings.self_loops and not settings.dropout and self.edge_HD is None
        if plain and whole:
            self.row_max_NH.copy_(functional.leaky_relu(self.s_NH + self.t_NH, settings.slope))
            if bool(self.row_max_NH.isfinite().all()):
                self.row_sum_NH.fill_(1)
                self.start_NK = z_NK
                yield from local[1:]
                return
        self.row_max_NH.fill_(-torch.inf)
        self.row_sum_NH.zero_()
        self.out_NK.zero_()
        yield from local

    @property
    def softmax(self) -> kernels.RunningSoftmax:
        """The running softmax of all blocks so far."""
        return kernels.RunningSoftmax(self.row_max_NH, self.row_sum_NH, self.out_NK, self.start_NK)

    def go(self, epoch: int, sent: InTurn | None = None, others: InTurn | None = None) -> None:
        """Run the pass; `sent` and `others` compute rows of z, s and t that aren't written yet."""
        graph, edges = self.graph, self.graph.in_edges

        def meanwhile(progress: Progress) -> None:
            for turn in (sent, others):
                if turn is not None:
                    turn.rest(progress)

        exchange_halo_ids(graph, edges, self.settings)
        for block, (z_MK, s_MH), progress in stream(
            graph,
            edges,
            Payload(
                (self.z_NK,), self.product_dtype or self.z_NK.dtype, (self.s_NH,), gathered=True
            ),
            where="attention forward",
            local=self._begin(),
            kept=self.kept,
            sums=SoftmaxSums(self.softmax),
            before=sent.before if sent else None,
            meanwhile=meanwhile,
            by_row=True,
        ):
            for rows in work(block, edges.num_parts):
                self._add(block, z_MK, s_MH, rows, epoch)
                progress()
            self.start_NK = None

    def _add(
        self, block: Block, z_MK: Tensor, s_MH: Tensor, rows: tuple[int, int], epoch: int
    ) -> None:
        edges = self.graph.in_edges
        dropout = edge_dropout(self.graph, edges, block, self.settings, epoch)
        self_loops = self._self_loops and block.peer == edges.rank
        kernels.gat_forward(
            block,
            kernels.Sources(z_MK, s_MH),
            self.t_NH,
            replace(self.softmax, self_loops=self_loops),
            kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            rows=rows,
        )


class BackwardPass:
    """The backward pass: gradients of z, s, t and the edge scores."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        product_dtype: torch.dtype | None,
        epoch: int,
        g_NK: Tensor,
        d_NH: Tensor,
        z_NK: Tensor,
        s_NH: Tensor,
        t_NH: Tensor,
        lse_NH: Tensor,
        edge_HD: Tensor | None,
    ) -> None:
        self.graph, self.settings, self.epoch = graph, settings, epoch
        self.g_NK = gathered(g_NK, product_dtype)
        self.z_NK, self.s_NH, self.edge_HD = z_NK, s_NH, edge_HD
        self.t_NH, self.lse_NH, self.d_NH = _side_by_side(t_NH, lse_NH, d_NH)
        self.product_dtype = product_dtype
        self.sources = kernels.Sources(z_NK, s_NH)
        self.grad_z_NK = graph.execution.arrays.like(z_NK, s_NH.dtype)
        self._first = True  # no block has been added to grad z yet
        self._self_loops = False  # the local block's kernel adds the self-loops
        self._sets = False  # the local block sets grad z, which was not zeroed
        heads = s_NH.shape[1]
        self.grad_scores_NH = s_NH.new_zeros(len(s_NH), 2 * heads)
        self.grad_s_NH, self.grad_t_NH = self.grad_scores_NH.split(heads, dim=1)
        self._edge = Totals([] if edge_HD is None else [edge_HD])

    @property
    def grad_edge_HD(self) -> Tensor | None:
        return next(iter(self._edge.result()), None)

    def _gradients(self, z: Tensor, s: Tensor, t: Tensor) -> kernels.GATGradients:
        return kernels.GATGradients(z, s, t, next(iter(self._edge.parts), None))

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of z (by the edges alone) and of both scores `[n, 2 H]`, and z.

        This drops g and z.
        """
        z_NK, self.z_NK = self.z_NK, self.z_NK.new_empty(0)
        self.g_NK = self.g_NK.new_empty(0)
        del self.sources
        return self.grad_z_NK, self.grad_scores_NH, z_NK

    def _local(self) -> list[Block]:
        """Return the local blocks. The first, or each slice of it, adds self-loops and sets grad z;
        on a GPU only where it can do both."""
        local = local_blocks(self.graph, self.graph.out_edges, self.settings.self_loops)
        whole = kernels.takes_whole_blocks(self.grad_z_NK.device)
        all_rows = local[-1].rows is None
        self._self_loops = self.settings.self_loops and self.edge_HD is None and all_rows
        self._sets = (whole and all_rows) or self._self_loops
        if not self._sets:
            self.grad_z_NK.zero_()
        return local[1:] if self._self_loops else local

    def at_sources(
        self,
        meanwhile: Callable[[Progress], None] | None = None,
        after: Callable[[int, Progress], None] | None = None,
    ) -> None:
        """Stream destination rows to the sources' owners.

        Args:
            meanwhile: computes z again.
            after: called on a CPU, if there are messages, once the local edges are added, with the
                row before which all gradients are complete.
        """
        graph, edges = self.graph, self.graph.out_edges
        exchange_halo_ids(graph, edges, self.settings)

        # Summed separately: replies arrive in any order, which must not change the rounding.
        replied = Returned(edges, torch.zeros_like(self.grad_t_NH))
        here_NH = torch.zeros_like(self.grad_t_NH, dtype=torch.float64)
        scalars = (self.t_NH, self.lse_NH, self.d_NH)
        here = kernels.Destinations(self.g_NK, *scalars)
        local, complete = self._local(), 0
        left = len(local)
        for block, (g_MK, t_MH, lse_MH, d_MH), grad_t_MH, progress in stream_and_return(
            graph,
            edges,
            Payload((self.g_NK,), self.product_dtype or self.g_NK.dtype, scalars, gathered=True),
            here_NH,
            replied.accept,
            where="attention backward",
            local=local,
            sums=RowSums(self.grad_z_NK, self.grad_s_NH),
            meanwhile=meanwhile,
            by_row=True,
        ):
            destinations = here
            if block.peer != edges.rank:
                destinations = kernels.Destinations(g_MK, t_MH, lse_MH, d_MH)
            sums = kernels.ThreadSums(grad_t_MH)
            for rows in work(block, edges.num_parts):
                self._source_side(block, destinations, sums.parts, rows)
                progress()
            self._first = False
            sums.add_up()
            left -= 1
            if left == 0 and after is not None and untouched(edges) > 0:
                complete = untouched(edges)
                self.grad_t_NH[:complete] += here_NH[:complete]
                after(complete, progress)
        replied.end()
        rest = slice(complete, None)
        self.grad_t_NH[rest] += here_NH[rest] + replied.matrices[0][rest]

    def _source_side(
        self,
        block: Block,
        destinations: kernels.Destinations,
        grad_t: Tensor,
        rows: tuple[int, int],
    ) -> None:
        dropout = edge_dropout(
            self.graph, self.graph.out_edges, block, self.settings, self.epoch, reverse=True
        )
        grads = self._gradients(self.grad_z_NK, self.grad_s_NH, grad_t)
        local = block.peer == self.graph.comm.rank
        # With self-loops there is one block, or its slices.
        if local and (self._first or self._self_loops):
            grads = replace(grads, self_loops=self._self_loops, adds=not self._sets)
        kernels.gat_backward(
            block,
            destinations,
            self.sources,
            grads,
            kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            rows=rows,
        )
        self._edge.added()

    def at_destinations(self, kept: list[Tensor]) -> None:
        """Compute gradients of the kept remote z and s here, and send them to their owners."""
        graph, edges, width = self.graph, self.graph.in_edges, self.g_NK.shape[1]
        here = kernels.Destinations(self.g_NK, self.t_NH, self.lse_NH, self.d_NH)
        there_NH = torch.zeros_like(self.grad_t_NH, dtype=torch.float64)
        sums = kernels.ThreadSums(there_NH)
        dtype, on_gpu = self.product_dtype or self.g_NK.dtype, self.g_NK.device.type == "cuda"
        layout = RowLayout(width, self.s_NH.shape[1], dtype, on_gpu)

        def produce(index: int, block: Block, out_MW: Tensor) -> None:
            rows_MW = kept[index]
            turned = kernels.transposed(block, graph.num_local_nodes, with_features=True)
            grad_z_MK = self.grad_z_NK.new_zeros(len(out_MW), width)
            grad_s_MH = layout.scalars(out_MW)
            dropout = edge_dropout(graph, edges, block, self.settings, self.epoch)
            kernels.gat_backward(
                turned,
                here,
                kernels.Sources(gathered(layout.features(rows_MW), None), layout.scalars(rows_MW)),
                self._gradients(grad_z_MK, grad_s_MH, sums.parts),
                kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            )
            self._edge.added()
            layout.features(out_MW)[:] = grad_z_MK

        returned = Returned(edges, self.grad_z_NK, self.grad_s_NH)

        def accept(rows: Tensor, grad_MW: Tensor) -> None:
            returned.accept(rows, layout.features(grad_MW), layout.scalars(grad_MW))

        def differentiate_here(progress: Progress) -> None:
            local = kernels.ThreadSums(torch.zeros_like(there_NH))
            for block in self._local():
                for rows in work(block, edges.num_parts):
                    self._source_side(block, here, local.parts, rows)
                    progress()
                self._first = False
            local.add_up()
            self.grad_t_NH += local.total

        return_gradients(
            graph,
            edges,
            layout.columns,
            layout.dtype,
            produce,
            accept,
            where="attention backward",
            first=differentiate_here,
        )
        returned.end()
        sums.add_up()
        self.grad_t_NH += there_NH


def _side_by_side(*scalars: Tensor) -> tuple[Tensor, ...]:
    """Return the scalars so that, on a CPU, those of a node share a cache line."""
    if scalars[0].device.type != "cpu":
        return scalars
    count, heads = scalars[0].shape
    line = _LINE // scalars[0].element_size()
    together = len(scalars) * heads
    width = -(-together // line) * line if 2 * together > line else together
    all_NW = scalars[0].new_empty(count, width)
    parts = all_NW[:, :together].split(heads, dim=1)
    for part_NH, given_NH in zip(parts, scalars, strict=True):
        part_NH.copy_(given_NH)
    return parts
