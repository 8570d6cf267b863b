"""Reductions of messages at their destinations that run on while blocks arrive.

Each keeps a few rows per node, never anything per edge, and says in backward what gradient a
message gets from the gradient of the result.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hpcgnn.errors import InputError


class Reduction(Protocol):
    """`add` every message, then `finish`; in backward `prepare` once, then `gradient` per piece.

    Messages `m` are `[e, M]`, `rows` int64 `[e]` are their destinations; logits as `m` or None.
    """

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None: ...
    def finish(self, degrees_N: Tensor) -> Tensor: ...
    def prepare(self, grad_NM: Tensor) -> None: ...
    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]: ...


class Sum:
    """Sum over in-edges; divided by their number as `mean`."""

    def __init__(self, like: Tensor, mean: bool = False) -> None:
        self.total_NM, self.mean = torch.zeros_like(like), mean
        self.scale_N1 = like.new_ones(len(like), 1)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        self.total_NM.index_add_(0, rows, m)

    def finish(self, degrees_N: Tensor) -> Tensor:
        if self.mean:
            self.scale_N1 = 1 / degrees_N.clamp(min=1)[:, None].to(self.total_NM.dtype)
        return self.total_NM * self.scale_N1

    def prepare(self, grad_NM: Tensor) -> None:
        self.grad_NM = grad_NM * self.scale_N1

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NM[rows], None


class Extreme:
    """Maximum (sign 1) or minimum (sign -1); 0 without in-edges; ties share the gradient evenly."""

    def __init__(self, like: Tensor, sign: int) -> None:
        self.sign = sign
        self.best_NM = torch.full_like(like, -torch.inf)
        self.ties_NM = torch.zeros_like(like)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        value = m * self.sign
        index = rows[:, None].expand_as(value)
        best_NM = self.best_NM.scatter_reduce(0, index, value, "amax")
        self.ties_NM.masked_fill_(best_NM > self.best_NM, 0)
        self.best_NM = best_NM
        self.ties_NM.index_add_(0, rows, (value == best_NM[rows]).to(m.dtype))

    def finish(self, degrees_N: Tensor) -> Tensor:
        return torch.where(self.ties_NM > 0, self.best_NM * self.sign, 0.0)

    def prepare(self, grad_NM: Tensor) -> None:
        self.grad_NM = grad_NM / self.ties_NM.clamp(min=1)

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NM[rows] * (m * self.sign == self.best_NM[rows]), None


class Spread:
    """Variance over in-edges, or its square root as `std` (with 1e-5 under the root)."""

    def __init__(self, like: Tensor, root: bool) -> None:
        self.root = root
        self.sum_NM, self.squares_NM = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        self.sum_NM.index_add_(0, rows, m)
        self.squares_NM.index_add_(0, rows, m * m)

    def finish(self, degrees_N: Tensor) -> Tensor:
        self.count_N1 = degrees_N.clamp(min=1)[:, None].to(self.sum_NM.dtype)
        self.mean_NM = self.sum_NM / self.count_N1
        var_NM = self.squares_NM / self.count_N1 - self.mean_NM * self.mean_NM
        self.open_NM = var_NM > 0
        var_NM = var_NM.clamp(min=0)
        if not self.root:
            return var_NM
        self.out_NM = (var_NM + 1e-5).sqrt()
        return self.out_NM

    def prepare(self, grad_NM: Tensor) -> None:
        if self.root:
            grad_NM = grad_NM / (2 * self.out_NM)
        self.grad_NM = 2 * grad_NM * self.open_NM / self.count_N1

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NM[rows] * (m - self.mean_NM[rows]), None


class Softmax:
    """Sum weighted by the softmax of the logits over each node's in-edges."""

    def __init__(self, like: Tensor) -> None:
        self.top_NM = torch.full_like(like, -torch.inf)
        self.total_NM, self.sum_NM = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        logit = _needed(logit)
        top_NM = self.top_NM.scatter_reduce(0, rows[:, None].expand_as(logit), logit, "amax")
        factor_NM = torch.where(torch.isinf(top_NM), 0.0, (self.top_NM - top_NM).exp())
        self.total_NM.mul_(factor_NM)
        self.sum_NM.mul_(factor_NM)
        share = (logit - top_NM[rows]).exp()
        self.total_NM.index_add_(0, rows, share)
        self.sum_NM.index_add_(0, rows, share * m)
        self.top_NM = top_NM

    def finish(self, degrees_N: Tensor) -> Tensor:
        total_NM = torch.where(self.total_NM > 0, self.total_NM, 1.0)
        self.lse_NM = torch.where(self.total_NM > 0, self.top_NM, 0.0) + total_NM.log()
        self.out_NM = self.sum_NM / total_NM
        return self.out_NM

    def prepare(self, grad_NM: Tensor) -> None:
        self.grad_NM = grad_NM

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        share = (_needed(logit) - self.lse_NM[rows]).exp()
        grad = share * self.grad_NM[rows]
        return grad, grad * (m - self.out_NM[rows])


def make(name: str, like_NM: Tensor) -> Reduction:
    """The reduction called `name` for results like `[n, M]`."""
    if name in ("sum", "mean"):
        return Sum(like_NM, mean=name == "mean")
    if name in ("max", "min"):
        return Extreme(like_NM, sign=1 if name == "max" else -1)
    if name in ("var", "std"):
        return Spread(like_NM, root=name == "std")
    if name == "softmax":
        return Softmax(like_NM)
    raise InputError("aggr must be sum, mean, max, min, var, std or softmax", value=name)


def _needed(logit: Tensor | None) -> Tensor:
    if logit is None:
        raise InputError("aggr softmax needs messages (value, logit)")
    return logit
