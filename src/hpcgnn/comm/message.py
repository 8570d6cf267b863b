"""Messages of an exchange, and whom a rank exchanges them with in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def ring_order(rank: int, size: int, direction: int) -> list[int]:
    """Peers of `rank` in ring order: whom it sends to (+1) or receives from (-1)."""
    return [(rank + direction * k) % size for k in range(1, size)]


@dataclass(frozen=True)
class Outgoing:
    """A message to `peer`; `pack` fills the `[num_rows, width]` buffer when a slot is free."""

    peer: int
    num_rows: int
    pack: Callable[[Tensor], None]


@dataclass(frozen=True)
class Incoming:
    """A message from `peer` of `num_rows` rows."""

    peer: int
    num_rows: int
