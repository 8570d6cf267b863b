"""GAT attention on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.backend import Rows
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.chunks import LONGEST, Hubs, split_of
from hpcgnn.kernels.cuda.launch import edges, launch, matrices, matrix, pointer
from hpcgnn.kernels.cuda.shapes import NAMES, WIDTHS, HeadShape, vector_width
from hpcgnn.kernels.cuda.sums import spmm
from hpcgnn.kernels.masks import EdgeDropout

SLAB_EDGES = 1 << 22  # whose scores' gradients exist at a time, where edge features need them
_UNIT_BITS = 61  # a sum of integers stays below 2^61 in size


def gat_forward(
    block: Block,
    sources: Sources,
    t: Tensor,
    softmax: RunningSoftmax,
    scoring: Scoring,
    rows: Rows,
) -> None:
    heads = sources.s.shape[1]

    def run(part: Block, softmax: RunningSoftmax, piece: Rows, partial: bool) -> None:
        kernel = Kernel.of(heads, (sources.z, softmax.out))
        kernel.launch(
            "gat_forward",
            part,
            piece,
            (
                *matrices(sources.z, sources.s, t),
                *softmax_arguments(softmax),
                *edge_term(block, scoring),
                *dropout_arguments(scoring.dropout, reverse=False),
            ),
            scoring,
            partial=partial,
        )

    run_softmax(block, rows, run, softmax)


@dataclass(frozen=True)
class Kernel:
    """An attention kernel's shape for given tensors."""

    heads: int
    channels: int
    dtype: torch.dtype
    device: torch.device
    shape: HeadShape

    @staticmethod
    def of(heads: int, tensors: Sequence[Tensor]) -> Kernel:
        """For tensors of `heads * channels` columns that are read or written in wide words."""
        channels = tensors[0].shape[1] // heads
        widest = WIDTHS[NAMES[tensors[0].dtype]][0]
        shape = HeadShape.of(heads, channels, vector_width(channels, tensors), widest)
        return Kernel(heads, channels, tensors[0].dtype, tensors[0].device, shape)

    def launch(
        self,
        name: str,
        block: Block,
        rows: Rows,
        arguments: Sequence[np.generic],
        scoring: Scoring,
        *,
        partial: bool,
        keeps: bool = True,
        source: str | None = None,
        blocks: tuple[int, int] | None = None,
    ) -> None:
        """Launch once, or once per piece of very wide heads.

        Args:
            keeps: the kernel has the parameter `keep`.
            source: the file, where its name is another.
            blocks: other than one warp per row.
        """
        real = np.float64 if self.dtype == torch.float64 else np.float32
        shape = self.shape
        extras = "true" if scoring.drops or scoring.edge_weight is not None else "false"
        template = f"{NAMES[self.dtype]}, {shape.vector}, {shape.template}, {extras}"
        for first_channel, keep in shape.launches():
            launch(
                source or name,
                f"{name}<{template}>",
                blocks or shape.blocks(rows[1] - rows[0]),
                (
                    *edges(block, rows, LONGEST),
                    *arguments,
                    real(scoring.slope),
                    *map(np.int32, (self.heads, self.channels, shape.lanes, shape.side)),
                    first_channel,
                    *((keep,) if keeps else ()),
                    np.int32(partial),
                ),
                self.device,
            )


def dropout_arguments(dropout: EdgeDropout | None, *, reverse: bool) -> tuple[np.generic, ...]:
    """What the macro DROPOUT names; `reverse`: the block's rows are the sources."""
    if dropout is None or dropout.p == 0:
        words = (np.uint64(0),) * 3
        return (np.uintp(0), np.uintp(0), np.float64(0), *words, np.int32(0))
    ids = [pointer(dropout.destination_ids), pointer(dropout.source_ids)]
    row_ids, column_ids = reversed(ids) if reverse else ids
    stream = map(np.uint64, dropout.stream)
    return (row_ids, column_ids, np.float64(dropout.p), *stream, np.int32(reverse))


def edge_term(block: Block, scoring: Scoring) -> tuple[np.generic, ...]:
    """What the macro EDGE_TERM names."""
    features = None if scoring.edge_weight is None else block.features
    width = 0 if features is None else features.shape[1]
    return (*matrix(scoring.edge_weight), pointer(features), np.int32(width))


def softmax_arguments(softmax: RunningSoftmax) -> tuple[np.generic, ...]:
    return matrices(softmax.row_max, softmax.row_sum, softmax.out)


def run_softmax(
    block: Block,
    rows: Rows,
    run: Callable[[Block, RunningSoftmax, Rows, bool], None],
    softmax: RunningSoftmax,
) -> None:
    """`run(block, softmax, rows, partial)`, again for the chunks of long rows, and these joined."""
    split = split_of(block)
    if rows[0] == rows[1] or split.num_edges == 0:
        return
    run(block, softmax, rows, False)
    hubs = split.hubs(rows)
    if hubs is None:
        return
    heads, out = softmax.row_max.shape[1], softmax.out
    chunks = RunningSoftmax.zeros(
        hubs.last - hubs.first, heads, out.shape[1], dtype=out.dtype, device=out.device
    )
    run(hubs.chunks, chunks, (hubs.first, hubs.last), True)
    launch(
        "gat_join",
        f"gat_join<{NAMES[out.dtype]}>",
        (hubs.high - hubs.low, 1),
        (
            *map(pointer, (hubs.join.rows, hubs.join.begin, hubs.join.end)),
            *map(np.int64, (hubs.low, hubs.first)),
            *softmax_arguments(chunks),
            *softmax_arguments(softmax),
            np.int32(heads),
            np.int32(out.shape[1] // heads),
        ),
        out.device,
    )


def gat_backward(
    block: Block,
    destinations: Destinations,
    sources: Sources,
    grads: GATGradients,
    scoring: Scoring,
    rows: Rows,
) -> None:
    split, heads = split_of(block), sources.s.shape[1]
    if rows[0] == rows[1] or split.num_edges == 0:
        return
    units = None if grads.t is None else _Units.of(destinations, sources, scoring)

    def launch_on(
        part: Block, to: tuple[Tensor, ...], piece: Rows, partial: bool, scores: np.uintp
    ) -> None:
        grad_z, grad_s = to
        Kernel.of(heads, (sources.z, destinations.g, grad_z)).launch(
            "gat_backward",
            part,
            piece,
            (
                *matrices(destinations.g, destinations.t, destinations.lse, destinations.d),
                *matrices(sources.z, sources.s, grad_z, grad_s),
                pointer(None if units is None else units.sums),
                pointer(None if units is None else units.unit),
                scores,
                *edge_term(block, scoring),
                *dropout_arguments(scoring.dropout, reverse=True),
            ),
            scoring,
            partial=partial,
        )

    def run(part: Block, to: tuple[Tensor, ...], piece: Rows, partial: bool) -> None:
        if grads.edge_weight is None or block.features is None:
            launch_on(part, to, piece, partial, pointer(None))
            return
        for slab, first, last in _slabs(part, piece):
            scores = sources.s.new_zeros(last - first, heads)
            # The kernel counts from the block's first edge.
            start = int(pointer(scores)) - first * heads * scores.itemsize
            own = tuple(x[slab[0] - piece[0] :] for x in to) if partial else to
            launch_on(part, own, slab, partial, np.uintp(start))
            grads.edge_weight.add_(scores.t() @ block.features[first:last].to(scores.dtype))

    run(block, (grads.z, grads.s), rows, False)
    add_hubs(split.hubs(rows), run, (grads.z, grads.s))
    if units is not None and grads.t is not None:
        total = grads.t if grads.t.dim() == 2 else grads.t[0]
        total[: block.num_columns] += units.total()


def _slabs(part: Block, rows: Rows) -> Iterator[tuple[Rows, int, int]]:
    """Rows with `SLAB_EDGES` edges and a row more at a time; where these edges begin and end."""
    low, high = rows
    begin, end = part.begin[low:high], part.end[low:high]
    if low == high:
        return
    places = torch.arange(int(begin[0]), int(end.max()) + 1, SLAB_EDGES, device=begin.device)
    cuts = sorted({0, *torch.searchsorted(begin, places).tolist(), high - low})
    for a, b in pairwise(cuts):
        first, last = int(begin[a]), int(end[a:b].max())
        if first < last:
            yield (low + a, low + b), first, last


def add_hubs(
    hubs: Hubs | None,
    run: Callable[[Block, Any, Rows, bool], None],
    sums: tuple[Tensor, ...],
) -> None:
    """`run` for chunks of long rows; their sums are then added to those of the rows."""
    if hubs is None:
        return
    count = hubs.last - hubs.first
    part = tuple(tensor.new_zeros(count, tensor.shape[1]) for tensor in sums)
    run(hubs.chunks, part, (hubs.first, hubs.last), True)
    for piece, tensor in zip(part, sums, strict=True):
        spmm(hubs.join, piece, tensor, (hubs.low, hubs.high), True)


@dataclass(frozen=True)
class _Units:
    """Sums over columns as 64-bit integers, which are the same in whatever order they are added.

    With |a| summing to at most 1 over the edges into a node, |dl| sums to at most
    max |g| max |z| / (1 - p) + max |d|: `unit` is the power of two that makes this fit.
    """

    sums: Tensor  # int64 [columns, heads]
    unit: Tensor  # scalar

    @staticmethod
    def of(destinations: Destinations, sources: Sources, scoring: Scoring) -> _Units:
        g, d, heads = destinations.g, destinations.d, sources.s.shape[1]

        def longest(x: Tensor) -> Tensor:
            shaped = x.unflatten(1, (heads, x.shape[1] // heads))
            return torch.linalg.vector_norm(shaped, dim=2, dtype=sum_type(x.dtype)).amax()

        kept = 1 - scoring.dropout.p if scoring.dropout is not None else 1.0
        bound = longest(g) * longest(sources.z) / kept + d.abs().amax()
        bound = bound * max(1.0, abs(scoring.slope))
        exponent = torch.frexp(bound).exponent.clamp(min=-60)
        unit = torch.ldexp(torch.ones_like(bound), _UNIT_BITS - exponent)
        unit = torch.where(torch.isfinite(bound), unit, torch.nan)
        return _Units(torch.zeros(g.shape[0], heads, dtype=torch.int64, device=g.device), unit)

    def total(self) -> Tensor:
        return self.sums.to(self.unit.dtype) * (1 / self.unit)
