"""Rows that no message adds to, on which a GPU works while messages are on their way.

A GPU does what it is asked for in turn: asked for all local edges at once, it takes no message
before they are done, and once all slots are full, no more messages come. So it is asked for the
local edges of rows that messages add to, then, a slice at a time, for those of all others, with
messages between as they come. Each row gets its edges in the same order, whenever they come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from hpcgnn import kernels
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.chunks import split_of
from hpcgnn.sar.hubs import CutBlocks

SLICE = 1 << 28  # bytes that a slice gathers, at least: a tenth of a millisecond
MOST = 16


def in_slices(
    blocks: CutBlocks, local: Iterable[Block], row_bytes: int
) -> tuple[Iterable[Block], list[Block]]:
    """What is to be done before messages, and slices to be done among them: all of `local`.

    Slices are of the last block. On a CPU, and where they would be short, there are none.

    Args:
        blocks: of which all but the own one come with messages.
        row_bytes: that an edge reads.
    """
    if not _on_gpu(blocks):
        return local, []
    *first, last = local
    count = min(split_of(last).num_edges * row_bytes // SLICE, MOST)
    if count < 2 or last.rows is not None:
        return [*first, last], []
    is_own = last is blocks.blocks[blocks.rank]
    near, far = blocks.derived(_Apart(is_own, last))
    # Few different cuts are kept.
    return [*first, near], far.derived(_Slices(1 << count.bit_length() - 1))


def _on_gpu(blocks: CutBlocks) -> bool:
    return blocks.blocks[blocks.rank].device.type == "cuda"


@dataclass(frozen=True)
class _Apart:
    """The rows of the local block that messages add to, and the others.

    Attributes:
        is_own: the block is the one among the blocks; else it is that without loops.
    """

    is_own: bool
    block: Block = field(compare=False)

    def build(self, given: CutBlocks) -> tuple[Block, Block]:
        device, count = self.block.device, self.block.num_rows
        reached_N = torch.zeros(count, dtype=torch.bool, device=device)
        for block in given.blocks:
            if block.peer != given.rank and block.num_rows:
                rows = slice(None) if block.rows is None else block.rows.long()
                reached_N[rows] = True
        near, far = (torch.nonzero(mask_N).flatten() for mask_N in (reached_N, ~reached_N))
        return kernels.picked(self.block, near), kernels.picked(self.block, far)


@dataclass(frozen=True)
class _Slices:
    """So many slices of about as many edges, without those of no rows."""

    count: int

    def build(self, given: Block) -> list[Block]:
        edges_N = (given.end - given.begin).cumsum(0)
        places = split_of(given).num_edges * torch.arange(1, self.count) // self.count
        inner = torch.searchsorted(edges_N, places.to(edges_N.device)).tolist()
        return [
            kernels.picked(given, slice(low, high))
            for low, high in pairwise([0, *inner, given.num_rows])
            if low < high
        ]
