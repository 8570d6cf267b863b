"""GAT attention on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from hpcgnn.kernels.chunks import LONGEST, Hubs, split_of
from hpcgnn.kernels.cuda.dropout import edge_dropout
from hpcgnn.kernels.cuda.launch import (
    THREADS,
    edges,
    int32,
    int64,
    launch,
    matrices,
    matrix,
    pointer,
    real,
)
from hpcgnn.kernels.cuda.shapes import (
    DROPS,
    FEATURES,
    NAMES,
    PLAIN,
    WIDTHS,
    HeadShape,
    vector_width,
)
from hpcgnn.kernels.cuda.sums import spmm

SLAB_EDGES = 1 << 22  # whose score gradients are stored at a time, where edge features need them
_PRODUCT_EDGES = 1 << 9  # added in the accumulation dtype, before float64
_NO_TERM = (np.uintp(0), int64(0), np.uintp(0), int32(0))
_SCORED = 4  # rows that a group of lanes scores: UNROLL in common.cuh
_BOUND_BLOCKS = 512  # most blocks that search for the longest row


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
                int32(softmax.self_loops),
                *edge_term(block, scoring),
                *edge_dropout(scoring.dropout, sources.z, reverse=False),
            ),
            scoring,
            partial=partial,
        )

    run_softmax(block, rows, run, softmax)


@dataclass(frozen=True)
class Kernel:
    """The launch shape of an attention kernel for given tensors."""

    heads: int
    channels: int
    dtype: torch.dtype
    device: torch.device
    shape: HeadShape

    @staticmethod
    def of(heads: int, tensors: Sequence[Tensor]) -> Kernel:
        """Return the shape for tensors of `heads * channels` columns, with vector accesses."""
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
        """Launch the kernel once, or once per piece of very wide heads.

        Args:
            keeps: whether the kernel has the parameter `keep`.
            source: name of the source file, if it isn't `name`.
            blocks: blocks of threads, if not one warp per row.
        """
        shape = self.shape
        extras = DROPS if scoring.drops else PLAIN
        extras = extras if scoring.edge_weight is None else FEATURES
        template = f"{shape.types(self.dtype)}, {extras}"
        for first_channel, keep in shape.launches:
            launch(
                source or name,
                f"{name}<{template}>",
                blocks or shape.blocks(rows[1] - rows[0]),
                (
                    *edges(block, rows, LONGEST),
                    *arguments,
                    real(self.dtype)(scoring.slope),
                    *map(int32, (self.heads, self.channels)),
                    *shape.logs,
                    first_channel,
                    *((keep,) if keeps else ()),
                    int32(partial),
                ),
                self.device,
            )


def edge_term(block: Block, scoring: Scoring) -> tuple[np.generic, ...]:
    """Return the arguments of the macro EDGE_TERM."""
    if scoring.edge_weight is None:
        return _NO_TERM
    features = block.features
    width = 0 if features is None else features.shape[1]
    return (*matrix(scoring.edge_weight), pointer(features), int32(width))


def softmax_arguments(softmax: RunningSoftmax) -> tuple[np.generic, ...]:
    return matrices(softmax.row_max, softmax.row_sum, softmax.out)


def head_dots(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    minus: Tensor | None,
    grad: Tensor | None = None,
    p: float = 0.0,
) -> None:
    rows, heads = out.shape
    if rows == 0 or a.shape[1] == 0:
        out.zero_()
        return
    kernel = Kernel.of(heads, (a, b) if grad is None else (a, b, grad))
    shape = kernel.shape
    launch(
        "head_dots",
        f"head_dots<{shape.types(a.dtype)}>",
        shape.blocks(rows, together=shape.groups),
        (
            *matrices(a, b),
            pointer(minus),
            *matrix(grad),
            real(a.dtype)(1 / (1 - p)),
            int64(rows),
            *matrix(out),
            *map(int32, (heads, kernel.channels)),
            *shape.logs,
        ),
        a.device,
    )


def head_scores(z: Tensor, source: Tensor, target: Tensor, out: Tensor) -> None:
    (rows, width), heads = z.shape, source.shape[0]
    if rows == 0 or width == 0:
        out.zero_()
        return
    kernel = Kernel.of(heads, (z,))
    shape = kernel.shape
    launch(
        "head_dots",
        f"head_scores<{shape.types(z.dtype)}>",
        shape.blocks(rows, together=shape.groups * _SCORED),
        (
            *matrix(z),
            *map(pointer, (source, target)),
            int64(rows),
            *matrix(out),
            *map(int32, (heads, kernel.channels)),
            *shape.logs,
        ),
        z.device,
    )


def run_softmax(
    block: Block,
    rows: Rows,
    run: Callable[[Block, RunningSoftmax, Rows, bool], None],
    softmax: RunningSoftmax,
) -> None:
    """Call `run(block, softmax, rows, partial)`, again for chunks of long rows, and join these."""
    split = split_of(block)
    if rows[0] == rows[1] or (split.num_edges == 0 and not softmax.self_loops):
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
            *map(int64, (hubs.low, hubs.first)),
            *softmax_arguments(chunks),
            *softmax_arguments(softmax),
            int32(heads),
            int32(out.shape[1] // heads),
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
    if rows[0] == rows[1] or (split.num_edges == 0 and not grads.self_loops):
        return
    if grads.edge_weight is not None and scoring.edge_weight is None:
        scoring = replace(scoring, edge_weight=torch.zeros_like(grads.edge_weight))
    units = None if grads.t is None else _Units.of(destinations, sources, scoring)
    bounds = _no_units(sources.z.dtype) if units is None else units.arguments

    scalars = _scalars(destinations)

    def launch_on(
        part: Block, to: tuple[Tensor, ...], piece: Rows, partial: bool, scores: np.uintp
    ) -> None:
        grad_z, grad_s = to
        Kernel.of(heads, (sources.z, destinations.g, grad_z)).launch(
            "gat_backward",
            part,
            piece,
            (
                *matrices(destinations.g, *scalars),
                *matrices(sources.z, sources.s, grad_z, grad_s),
                *map(int32, (grads.self_loops and not partial, grads.adds or partial)),
                pointer(None if units is None else units.sums),
                *bounds,
                scores,
                *edge_term(block, scoring),
                *edge_dropout(scoring.dropout, sources.z, reverse=True),
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
            # The kernel indexes scores from the block's first edge.
            start = int(pointer(scores)) - first * heads * scores.itemsize
            own = tuple(x[slab[0] - piece[0] :] for x in to) if partial else to
            launch_on(part, own, slab, partial, np.uintp(start))
            grads.edge_weight.add_(_product(scores, block.features[first:last]))

    run(block, (grads.z, grads.s), rows, False)
    add_hubs(split.hubs(rows), run, (grads.z, grads.s))
    if units is not None and grads.t is not None:
        total = grads.t if grads.t.dim() == 2 else grads.t[0]
        units.add_to(total, block.num_columns)


def _scalars(destinations: Destinations) -> tuple[Tensor, ...]:
    """Return t, lse and d with their rows side by side in memory, as in a message."""
    given = destinations.t, destinations.lse, destinations.d
    begins, strides = [x.data_ptr() for x in given], {x.stride(0) * x.itemsize for x in given}
    in_one_row = len(strides) == 1 and max(begins) - min(begins) < strides.pop()
    if in_one_row or len(destinations.t) == 0:
        return given
    return destinations.derived(_SideBySide()).split(destinations.t.shape[1], dim=1)


@dataclass(frozen=True)
class _SideBySide:
    def build(self, destinations: Destinations) -> Tensor:
        return torch.cat([destinations.t, destinations.lse, destinations.d], dim=1)


def _product(scores: Tensor, features: Tensor) -> Tensor:
    """Return scores^T @ features for very many edges: a product per chunk, added in float64."""
    features, heads, depth = features.to(scores.dtype), scores.shape[1], features.shape[1]
    whole = len(scores) // _PRODUCT_EDGES * _PRODUCT_EDGES
    chunked = scores[:whole].view(-1, _PRODUCT_EDGES, heads).transpose(1, 2)
    parts = chunked @ features[:whole].view(-1, _PRODUCT_EDGES, depth)
    return parts.sum(0, dtype=torch.float64) + scores[whole:].t() @ features[whole:]


def _slabs(part: Block, rows: Rows) -> Iterator[tuple[Rows, int, int]]:
    """Yield rows with `SLAB_EDGES` edges plus at most a row, and the range of these edges."""
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
    """Call `run` for the chunks of long rows and add their sums to those of the rows."""
    if hubs is None:
        return
    count = hubs.last - hubs.first
    part = tuple(tensor.new_zeros(count, tensor.shape[1]) for tensor in sums)
    run(hubs.chunks, part, (hubs.first, hubs.last), True)
    for piece, tensor in zip(part, sums, strict=True):
        spmm(hubs.join, piece, tensor, (hubs.low, hubs.high), adds=True)


@dataclass(frozen=True)
class _Bounds:
    """Bounds on rows of `heads` heads: the largest |x|^2 of a head, and the largest |scalar|.

    Both are stored as the bits of numbers in the accumulation dtype, one integer word each. For
    destinations the sums of `_Units` come with them; they are 0 except while a kernel adds to them.
    """

    heads: int

    def build(self, given: Sources | Destinations, /) -> tuple[Tensor, Tensor]:
        scalars: Tensor | None = None
        if isinstance(given, Sources):
            x, summed = given.z, 0
        else:
            x, scalars, summed = given.g, given.d, len(given.g)
        sums = torch.empty(summed, self.heads, dtype=torch.int64, device=x.device)
        wide = torch.int64 if x.dtype == torch.float64 else torch.int32
        found = torch.zeros(2, dtype=wide, device=x.device)
        rows = len(x)
        if rows == 0:
            return found, sums
        kernel = Kernel.of(self.heads, (x,))
        shape = kernel.shape
        blocks, tiles = shape.blocks(rows, together=shape.groups)
        launch(
            "gat_units",
            f"gat_longest<{shape.types(x.dtype)}>",
            (min(blocks, _BOUND_BLOCKS), tiles),
            (
                *matrix(x),
                *matrix(scalars),
                int64(rows),
                *map(pointer, (found[:1], found[1:], sums if summed else None)),
                *map(int32, (self.heads, kernel.channels)),
                *shape.logs,
            ),
            x.device,
        )
        return found, sums


@dataclass(frozen=True)
class _Units:
    """Sums per column in 64-bit integers, which don't depend on the order of addition.

    `sums`: `[columns, heads]`; `arguments`: those of the macro UNIT.
    """

    sums: Tensor
    dtype: torch.dtype
    arguments: tuple[np.generic, ...]

    @staticmethod
    def of(destinations: Destinations, sources: Sources, scoring: Scoring) -> _Units:
        g, heads = destinations.g, sources.s.shape[1]
        there, sums = destinations.derived(_Bounds(heads))
        here, _ = sources.derived(_Bounds(heads))
        kept = 1 - scoring.dropout.p if scoring.dropout is not None else 1.0
        kind = real(g.dtype)
        arguments = (
            *map(pointer, (there[:1], there[1:], here[:1])),
            kind(1 / kept),
            kind(max(1.0, abs(scoring.slope))),
        )
        return _Units(sums, g.dtype, arguments)

    def add_to(self, grad_t: Tensor, num_rows: int) -> None:
        """Add the sums of the first `num_rows` rows to `grad_t`; the others received no terms."""
        heads = self.sums.shape[1]
        launch(
            "gat_units",
            f"gat_settle<{NAMES[self.dtype]}, {NAMES[grad_t.dtype]}>",
            (-(-num_rows // THREADS), 1),
            (
                pointer(self.sums),
                *self.arguments,
                *matrix(grad_t),
                int64(num_rows),
                int32(heads),
            ),
            grad_t.device,
        )


def _no_units(dtype: torch.dtype) -> tuple[np.generic, ...]:
    kind = real(dtype)
    return (*map(pointer, (None, None, None)), kind(1), kind(1))
