"""What a partition costs: cut edges, halo rows, balance; beside those of a random partition."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.partition.sorting import Int64


@dataclass(frozen=True)
class Numbers:
    """Counts per part, int64 `[P]` each, equal on all ranks.

    `halo` are remote rows a part reads, `sent` its rows that others read, once per reader; `cut`
    the edges into the part from others.
    """

    nodes: Int64
    edges: Int64
    cut: Int64
    halo: Int64
    sent: Int64
    train: Int64
    symmetric: bool
