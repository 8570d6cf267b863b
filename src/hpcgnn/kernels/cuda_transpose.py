"""Compressing a block by column on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.kernels.split import split_of

if TYPE_CHECKING:
    from hpcgnn.graph import Block


def transpose(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Begin of each column (one more than columns), local row and old edge of each new edge."""
    device, counts = block.device, block.end - block.begin
    number = torch.arange(split_of(block).num_edges, device=device)
    row = torch.repeat_interleave(torch.arange(block.num_rows, device=device), counts)
    edge = number + (block.begin - (counts.cumsum(0) - counts))[row]
    columns = block.columns[edge] - block.column_offset
    order = torch.argsort(columns, stable=True)
    pointers = torch.zeros(block.num_columns + 1, dtype=torch.int64, device=device)
    torch.cumsum(torch.bincount(columns, minlength=block.num_columns), 0, out=pointers[1:])
    local = row.to(torch.int32) if block.rows is None else block.rows[row]
    return pointers, local[order], edge[order]
