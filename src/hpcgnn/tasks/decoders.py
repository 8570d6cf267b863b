"""From the rows of two nodes to what is said of the pair."""

from __future__ import annotations

import torch
from torch import Tensor


class DotProduct(torch.nn.Module):
    """`sum(x_src * x_dst)`: one score per pair, without parameters."""

    def forward(self, x_src: Tensor, x_dst: Tensor) -> Tensor:
        return (x_src * x_dst).sum(dim=1, keepdim=True)


def name_of(decoder: torch.nn.Module | None) -> str:
    """`dot`, `mlp`, or `own`, as checkpoints call it."""
    return {DotProduct: "dot", PairMLP: "mlp"}.get(type(decoder), "own")


class PairMLP(torch.nn.Module):
    """A network of one hidden layer over a pair.

    Args:
        width: of a node's row.
        outputs: numbers per pair.
        product: read `x_src * x_dst`, the same both ways round; else both rows, one after the
            other.
        seed: of the first weights, the same on all ranks.
    """

    def __init__(self, width: int, outputs: int, *, product: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.product = product
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.inner = torch.nn.Linear(width if product else 2 * width, width)
            self.outer = torch.nn.Linear(width, outputs)

    def forward(self, x_src: Tensor, x_dst: Tensor) -> Tensor:
        joined = x_src * x_dst if self.product else torch.cat([x_src, x_dst], dim=1)
        found: Tensor = self.outer(torch.relu(self.inner(joined)))
        return found
