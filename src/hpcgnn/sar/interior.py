"""Slices of the rows that no message adds to, which a GPU works on between messages.

A GPU executes work in the order it is queued: if all local edges are queued at once, it takes no
message before they are done, and once all slots are full no more messages arrive. So the local
edges of rows that messages add to are queued first, and then those of all other rows a slice at a
time, with messages as they arrive in between. Each row adds its edges in the same order, whenever
messages arrive.
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

SLICE = 1 << 28  # least bytes that a slice gathers: 0.1 ms
MOST = 16


def in_slices(
    blocks: CutBlocks, local: Iterable[Block], row_bytes: int
) -> tuple[Iterable[Block], list[Block]]:
    """Return the blocks to do before any message, and slices to do between messages.

    Together they are all of `local`; the slices are of its last block. On a CPU, and where slices
    would be short, there are no slices.

    Args:
        blocks: all blocks, of which those of other ranks arrive in messages.
        row_bytes: bytes read per edge.
    """
    if not on_gpu(blocks):
        return local, []
    *first, last = local
    count = min(split_of(last).num_edges * row_bytes // SLICE, MOST)
    if count < 2 or last.rows is not None:
        return [*first, last], []
    is_own = last is blocks.blocks[blocks.rank]
    near, far = blocks.derived(_Apart(is_own, last))
    # A power of two, so that few different cuts are cached.
    return [*first, near], far.derived(_Slices(1 << count.bit_length() - 1))


def on_gpu(blocks: CutBlocks) -> bool:
    """Return whether local work is cut into slices, between which messages are processed."""
    return blocks.blocks[blocks.rank].device.type == "cuda"


@dataclass(frozen=True)
class _Apart:
    """The rows of the local block that messages add to, and the other rows, as two blocks.

    Attributes:
        is_own: whether the block is that of `given.blocks`, rather than the one without loops.
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
    """A block cut into `count` slices with about equally many edges; empty slices are left out."""

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
