"""What attention kernels take and give: tensors that travel together.

H heads of C channels each are K columns, a head's channels side by side. In forward a block's
columns are M sources and its rows destinations, N local ones; in the reversed graph it is the
other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.kernels.block import Derived
from hpcgnn.kernels.masks import EdgeDropout


@dataclass(frozen=True)
class RunningSoftmax:
    """A softmax-weighted sum so far, updated in place by one block after the other.

    With u the scores so far, `row_max` is the largest of a row, `row_sum` the sum of
    exp(u - row_max), and `out` the sum of exp(u - row_max) times what is summed.

    Attributes:
        row_max, row_sum: `[N, H]`, in the type of sums; start them at -inf and 0.
        out: `[N, K]`, in the type of sums; starts at 0.
        start: `[N, K]` like z, of which rows count in place of those of `out`, which need no value
            then: for the first block alone, which must have all rows. On a CPU.
        loops: the block has an edge from each row to itself besides, without edge features, and
            nothing in these matrices counts: for blocks that together have all rows and come
            first. On a GPU.
    """

    row_max: Tensor
    row_sum: Tensor
    out: Tensor
    start: Tensor | None = None
    loops: bool = False

    @staticmethod
    def zeros(
        rows: int, heads: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> RunningSoftmax:
        """Over no edges yet, for `rows` destinations and `width` columns of what is summed."""
        row_max = torch.full((rows, heads), -torch.inf, dtype=dtype, device=device)
        out = torch.zeros(rows, width, dtype=dtype, device=device)
        return RunningSoftmax(row_max, torch.zeros_like(row_max), out)


@dataclass(frozen=True)
class Scoring:
    """How scores are made of what both ends of an edge know.

    Attributes:
        slope: of the leaky rectifier.
        dropout: an edge's part of `out`, not of `row_sum`, is times mask / (1 - p).
        edge_weight: what edge features of width D are multiplied with, in the type of sums:
            `[H, D]` for GAT, `[D, K]` for GATv2. None: edge features don't count.
    """

    slope: float
    dropout: EdgeDropout | None = None
    edge_weight: Tensor | None = None

    @property
    def drops(self) -> bool:
        return self.dropout is not None and self.dropout.p > 0


@dataclass(frozen=True, eq=False)
class Sources(Derived):
    """The sources of GAT's edges: features z, `[M, K]`, and their scores s, `[M, H]`.

    What kernels derive of them is computed once for an object: z must not change meanwhile.
    """

    z: Tensor
    s: Tensor


@dataclass(frozen=True, eq=False)
class Destinations(Derived):
    """The destinations of GAT's edges in backward; g and d must not change while they are used.

    Attributes:
        g: `[N, K]`, gradient of the attention's result.
        t: `[N, H]`, scores.
        lse: `[N, H]`, row_max + log(row_sum) after the last block.
        d: `[N, H]`, <g, result>, head by head.
    """

    g: Tensor
    t: Tensor
    lse: Tensor
    d: Tensor


@dataclass(frozen=True)
class GATGradients:
    """Gradients of GAT, each added to.

    Attributes:
        z, s: like those of `Sources`, in the type of sums.
        t: like that of `Destinations`, or float64, which saves a copy, or the `parts` of a
            `ThreadSums`, which save it for several calls; None where not asked for.
        edge_weight: `[H, D]`; None where not asked for.
        loops: the block has an edge from each row to itself besides, without edge features: its
            columns are local rows too.
        adds: whether `z` counts; else it is overwritten, by a block that has all rows, on a GPU by
            one with `loops`.
    """

    z: Tensor
    s: Tensor
    t: Tensor | None = None
    edge_weight: Tensor | None = None
    loops: bool = False
    adds: bool = True


@dataclass(frozen=True)
class Projections:
    """Both ends of GATv2's edges, and the vector that scores them.

    Attributes:
        zl: `[M, K]`, of the sources; also what is summed.
        zr: `[N, K]`, of the destinations.
        att: `[H, C]`, contiguous.
    """

    zl: Tensor
    zr: Tensor
    att: Tensor


@dataclass(frozen=True)
class ResultGradient:
    """The gradient of GATv2's result at the destinations; g, lse and d as in `Destinations`."""

    g: Tensor
    lse: Tensor
    d: Tensor


@dataclass(frozen=True)
class GATv2Gradients:
    """Gradients of GATv2, each added to.

    Attributes:
        zl, zr: like those of `Projections`, in the type of sums.
        att: `[H, C]`, contiguous; in the type of sums or float64.
        edge_weight: `[D, K]`, contiguous, likewise; None where not asked for.
    """

    zl: Tensor
    zr: Tensor
    att: Tensor
    edge_weight: Tensor | None = None
