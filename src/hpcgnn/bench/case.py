"""What is measured: a power-law graph, widths, and the operations every implementation may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]
Operations = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """Sizes of the graph and of the features, and where it all lies."""

    nodes: int
    edges: int
    width: int
    heads: int
    channels: int
    device: str = "cpu"
    threads: int = 1
    seed: int = 0

    @property
    def sums(self) -> str:
        return f"sum of neighbours, width {self.width}"

    @property
    def attention(self) -> str:
        return f"attention, {self.heads} heads x {self.channels}"


@dataclass(frozen=True)
class Edges:
    """Edges by target: int64 row pointer `[n + 1]`, sources and targets `[E]`."""

    pointer: Tensor
    source: Tensor
    target: Tensor


def power_law_edges(case: Case) -> Edges:
    """A symmetric graph whose degrees follow a power law (exponent about 2.4)."""
    generator = torch.Generator().manual_seed(case.seed)
    weight = (torch.arange(case.nodes) + 10.0) ** -0.7
    chance = torch.cumsum(weight / weight.sum(), 0)
    order = torch.randperm(case.nodes, generator=generator)
    ends = torch.searchsorted(chance, torch.rand(2, case.edges // 2, generator=generator))
    ends = order[ends.clamp(max=case.nodes - 1)]
    source, target = torch.cat([ends[0], ends[1]]), torch.cat([ends[1], ends[0]])
    key = torch.sort(target * case.nodes + source).values
    target, source = key // case.nodes, key % case.nodes
    pointer = torch.zeros(case.nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(target, minlength=case.nodes), 0, out=pointer[1:])
    return Edges(pointer.to(case.device), source.to(case.device), target.to(case.device))


def there_and_back(name: str, layer: Layer, case: Case, width: int) -> Operations:
    """The layer's forward alone, and forward with backward, on random features `[n, width]`."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    x_NF, grad_NF = (
        torch.randn(case.nodes, width, generator=generator).to(case.device) for _ in range(2)
    )

    def alone() -> object:
        with torch.no_grad():
            return layer(x_NF)

    def both() -> object:
        return layer(x_NF.detach().requires_grad_()).backward(grad_NF)

    return {f"{name}, forward": alone, f"{name}, forward + backward": both}
