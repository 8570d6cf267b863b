"""Random blocks and their edges as lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.kernels.block import Block


@dataclass
class Edges:
    """A block and the list of its edges: edge e goes from column source[e] to row target[e]."""

    block: Block
    source: Tensor
    target: Tensor
    num_rows: int

    @property
    def weight(self) -> Tensor:
        weight = self.block.weight
        return (
            torch.ones(len(self.source), dtype=torch.float64) if weight is None else weight.double()
        )


def random_edges(
    num_rows: int,
    num_columns: int,
    num_edges: int,
    *,
    seed: int = 0,
    weighted: bool = False,
    relations: int = 0,
    feature_width: int = 0,
    listed_rows: bool = False,
) -> Edges:
    """Return random edges, with duplicates; with `listed_rows` the block lists its rows."""
    draw = torch.Generator().manual_seed(seed)
    if num_columns == 0 or num_rows == 0:
        num_edges = 0
    source = torch.randint(max(num_columns, 1), (num_edges,), generator=draw)
    target = (torch.rand(num_edges, generator=draw) ** 3 * num_rows).long()
    order = (target * max(num_columns, 1) + source).argsort(stable=True)
    source, target = source[order], target[order]
    counts = torch.bincount(target, minlength=num_rows)
    rows = None
    if listed_rows:
        rows = torch.nonzero(counts).flatten()
        counts = counts[rows]
    end = counts.cumsum(0)
    block = Block(
        peer=0,
        num_columns=num_columns,
        rows=None if rows is None else rows.to(torch.int32),
        begin=end - counts,
        end=end,
        columns=source.to(torch.int32),
        weight=torch.rand(num_edges, generator=draw) - 0.3 if weighted else None,
        relation=(
            torch.randint(relations, (num_edges,), generator=draw, dtype=torch.int32)
            if relations
            else None
        ),
        features=torch.randn(num_edges, feature_width, generator=draw) if feature_width else None,
    )
    return Edges(block, source, target, num_rows)


def matrix(rows: int, width: int, dtype: torch.dtype, seed: int, *, pad: int = 3) -> Tensor:
    """Return normally distributed numbers with a row stride that is not a power of two."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width + pad, generator=draw, dtype=torch.float64).to(dtype)[:, :width]
