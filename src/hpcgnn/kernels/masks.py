"""Settings of dropout: random streams, masks of edges, and scaling fused with dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

WORD = 2**64 - 1


class Stream(NamedTuple):
    """The key of a stream of random numbers; each field is an unsigned 64-bit word."""

    seed: int
    epoch: int
    layer: int

    @staticmethod
    def of(seed: int, epoch: int, layer: int) -> Stream:
        return Stream(seed & WORD, epoch & WORD, layer & WORD)


@dataclass(frozen=True)
class EdgeDropout:
    """Attention dropout: head h of the edge j -> i is dropped with probability p.

    The decision depends on (seed, epoch, layer, original id of j, original id of i, h) alone, so it
    is the same forward and backward, on every number of ranks and in every order of the edges.

    Attributes:
        p: in [0, 1).
        source_ids: int64, original id of each source row: of the block's columns in forward, of the
            local rows in backward, where the block is one of the reversed graph.
        destination_ids: int64, original id of each destination row.
        first_head: h of the call's first head, where heads are processed a few at a time.
    """

    p: float
    seed: int
    epoch: int
    layer: int
    source_ids: Tensor
    destination_ids: Tensor
    first_head: int = 0

    @property
    def stream(self) -> Stream:
        return Stream.of(self.seed, self.epoch, self.layer)


@dataclass(frozen=True)
class Sums:
    """Finishing of sums in the same pass as dropout, before it: `x / divisor + bias`.

    Attributes:
        divisor_NH: `[n, H]`, in the accumulation dtype, each for K / H adjacent columns; None: 1.
        bias_K: `[K]`, in the accumulation dtype; None: 0.
    """

    divisor_NH: Tensor | None = None
    bias_K: Tensor | None = None
