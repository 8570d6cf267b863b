"""Arguments and results of the attention kernels, as groups of tensors.

H heads of C channels each are K columns, a head's channels side by side. In forward a block's
columns are the M sources and its rows the N local destinations; in the reversed graph rows and
columns change places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.kernels.block import Derived
from hpcgnn.kernels.masks import EdgeDropout


@dataclass(frozen=True)
class RunningSoftmax:
    """A running softmax-weighted sum, updated in place block by block.

    With u a row's scores so far, `row_max` is their maximum, `row_sum` the sum of
    exp(u - row_max), and `out` the sum of exp(u - row_max) times the summed features.

    Attributes:
        row_max, row_sum: `[N, H]`, in the accumulation dtype; start them at -inf and 0.
        out: `[N, K]`, in the accumulation dtype; starts at 0.
        start: `[N, K]` like z: the initial value of `out`, which may then be uninitialised. For
            the first block alone, which must have all rows; on a CPU only.
        self_loops: add an edge without edge features from each row to itself, and overwrite these
            matrices whatever they hold. For the blocks that come first and together have all
            rows; on a GPU only.
    """

    row_max: Tensor
    row_sum: Tensor
    out: Tensor
    start: Tensor | None = None
    self_loops: bool = False

    @staticmethod
    def zeros(
        rows: int, heads: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> RunningSoftmax:
        """Return the empty sum for `rows` destinations and `width` columns of features."""
        row_max = torch.full((rows, heads), -torch.inf, dtype=dtype, device=device)
        out = torch.zeros(rows, width, dtype=dtype, device=device)
        return RunningSoftmax(row_max, torch.zeros_like(row_max), out)


@dataclass(frozen=True)
class Scoring:
    """Parameters of the scores of edges.

    Attributes:
        slope: negative slope of the leaky ReLU.
        dropout: multiplies an edge's term in `out`, not in `row_sum`, by mask / (1 - p).
        edge_weight: weight of the edge features of width D, in the accumulation dtype: `[H, D]`
            for GAT, `[D, K]` for GATv2. None: edge features are ignored.
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

    Kernels keep what they derive from z with the object, so z must not change while in use.
    """

    z: Tensor
    s: Tensor


@dataclass(frozen=True, eq=False)
class Destinations(Derived):
    """The destinations of GAT's edges in backward; g and d must not change while in use.

    Attributes:
        g: `[N, K]`, gradient of the attention's output.
        t: `[N, H]`, scores of the destinations.
        lse: `[N, H]`, row_max + log(row_sum) after the last block.
        d: `[N, H]`, <g, output>, head by head.
    """

    g: Tensor
    t: Tensor
    lse: Tensor
    d: Tensor


@dataclass(frozen=True)
class GATGradients:
    """Gradients of GAT, to which the kernels add.

    Attributes:
        z, s: like those of `Sources`, in the accumulation dtype.
        t: like that of `Destinations`; or float64, which saves a copy; or the `parts` of a
            `ThreadSums`, which save the copy for several calls; None if not needed.
        edge_weight: `[H, D]`; None if not needed.
        self_loops: the block has an additional edge from each row to itself, without edge features;
            its columns are local rows too.
        adds: whether to add to `z`; otherwise it is overwritten, on a CPU by a block that has all
            rows, on a GPU by one with `self_loops`.
    """

    z: Tensor
    s: Tensor
    t: Tensor | None = None
    edge_weight: Tensor | None = None
    self_loops: bool = False
    adds: bool = True


@dataclass(frozen=True)
class Projections:
    """The features at both ends of GATv2's edges, and the vector that scores them.

    Attributes:
        zl: `[M, K]`, of the sources; also the features that are summed.
        zr: `[N, K]`, of the destinations.
        att: `[H, C]`, contiguous.
    """

    zl: Tensor
    zr: Tensor
    att: Tensor


@dataclass(frozen=True)
class ResultGradient:
    """The gradient of GATv2's output at the destinations; g, lse and d as in `Destinations`."""

    g: Tensor
    lse: Tensor
    d: Tensor


@dataclass(frozen=True)
class GATv2Gradients:
    """Gradients of GATv2, to which the kernels add.

    Attributes:
        zl, zr: like those of `Projections`, in the accumulation dtype.
        att: `[H, C]`, contiguous; in the accumulation dtype or float64.
        edge_weight: `[D, K]`, contiguous, with the same dtypes; None if not needed.
    """

    zl: Tensor
    zr: Tensor
    att: Tensor
    edge_weight: Tensor | None = None
