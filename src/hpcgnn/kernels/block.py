"""The kernels' operand: edges compressed by destination row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn.kernels.derived import Derived


@dataclass(frozen=True)
class Block(Derived):
    """Edges from one part into this rank's nodes, compressed by destination row.

    Row k of the block is local node `rows[k]` (or k itself where `rows` is None) and owns the edges
    `begin[k] .. end[k]`; edge e reads row `columns[e] - column_offset` of whatever is multiplied.
    """

    peer: int
    num_columns: int
    rows: Tensor | None  # int32 [R], ascending
    begin: Tensor  # int64 [R]
    end: Tensor  # int64 [R]
    columns: Tensor  # int32 [E], ascending in each row
    column_offset: int = 0
    weight: Tensor | None = None  # float32 [E]
    relation: Tensor | None = None  # int32 [E]
    features: Tensor | None = None  # float32 [E, D]

    @property
    def num_rows(self) -> int:
        return self.begin.shape[0]

    @property
    def num_edges(self) -> int:
        return int((self.end - self.begin).sum())

    def to(self, device: torch.device | str) -> Block:
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def device(self) -> torch.device:
        return self.begin.device
