"""Reductions of messages at their destinations, accumulated as blocks arrive.

Each keeps a few rows per node and nothing per edge; in backward it returns the gradients of
messages, given the gradient of the result. Sums are in float64: in float32 those of nodes with very
many in-edges stop growing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hpcgnn.errors import InputError


class Reduction(Protocol):
    """A reduction: `add` all messages, then `finish`; in backward, `prepare` once, then
    `gradient` for some edges at a time.

    `state` hands over all arrays that backward needs, for autograd to hold and free; `restore`
    takes them back. Messages `m` are `[e, G]`; `rows`, int64 `[e]`, are their destinations, with
    equal ones adjacent in `add`; logits have the shape of `m`, or are None.
    """

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None: ...
    def finish(self, degrees_N: Tensor) -> Tensor: ...
    def state(self) -> list[Tensor]: ...
    def restore(self, state: list[Tensor]) -> None: ...
    def prepare(self, grad_NG: Tensor) -> None: ...
    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]: ...


class _Held:
    """Arrays by name: those in `scratch` are for forward only, those in `lasting` for backward."""

    lasting: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()

    def state(self) -> list[Tensor]:
        for name in self.scratch:
            vars(self).pop(name, None)
        return [vars(self).pop(name) for name in self.lasting]

    def restore(self, state: list[Tensor]) -> None:
        vars(self).update(zip(self.lasting, state, strict=True))


class Sum(_Held):
    """Sum over in-edges, divided by their number if `mean`."""

    lasting = ("scale_N1",)
    scratch = ("total_NG",)

    def __init__(self, like: Tensor, mean: bool = False) -> None:
        self.total_NG, self.mean = torch.zeros_like(like, dtype=torch.float64), mean
        self.scale_N1 = like.new_ones(len(like), 1)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        self.total_NG.index_add_(0, rows, m.double())

    def finish(self, degrees_N: Tensor) -> Tensor:
        if self.mean:
            self.scale_N1 = 1 / degrees_N.clamp(min=1)[:, None].to(self.scale_N1.dtype)
        result = self.total_NG.mul_(self.scale_N1).to(self.scale_N1.dtype)
        del self.total_NG
        return result

    def prepare(self, grad_NG: Tensor) -> None:
        self.grad_NG = grad_NG * self.scale_N1

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NG[rows], None


class Extremum(_Held):
    """Maximum (sign 1) or minimum (sign -1); 0 without in-edges; ties share the gradient evenly."""

    lasting = ("best_NG", "ties_NG")

    def __init__(self, like: Tensor, sign: int) -> None:
        self.sign = sign  # NaN wins over any number, as in torch
        self.best_NG = torch.full_like(like, -torch.inf)
        self.ties_NG = torch.zeros_like(like, dtype=torch.int32)  # float32 stops at 2^24

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        value = m * self.sign
        own, inverse = torch.unique_consecutive(rows, return_inverse=True)
        before = self.best_NG[own]
        best = before.scatter_reduce(0, inverse[:, None].expand_as(value), value, "amax")
        ties = self.ties_NG[own].masked_fill_((best > before) | best.isnan(), 0)
        ties.index_add_(0, inverse, (value == best[inverse]).int())
        self.best_NG[own], self.ties_NG[own] = best, ties

    def finish(self, degrees_N: Tensor) -> Tensor:
        seen_NG = (self.ties_NG > 0) | self.best_NG.isnan()
        return torch.where(seen_NG, self.best_NG * self.sign, 0.0)

    def prepare(self, grad_NG: Tensor) -> None:
        self.grad_NG = grad_NG / self.ties_NG.clamp(min=1)

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NG[rows] * (m * self.sign == self.best_NG[rows]), None


class Variance(_Held):
    """Variance over in-edges, or its square root as `std` (with 1e-5 under the root)."""

    lasting = ("count_N1", "mean_NG", "open_NG", "out_NG")
    scratch = ("sum_NG", "squares_NG")

    def __init__(self, like: Tensor, root: bool) -> None:
        self.root, self.dtype = root, like.dtype
        self.sum_NG = torch.zeros_like(like, dtype=torch.float64)
        self.squares_NG = torch.zeros_like(self.sum_NG)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        m = m.double()
        self.sum_NG.index_add_(0, rows, m)
        self.squares_NG.index_add_(0, rows, m * m)

    def finish(self, degrees_N: Tensor) -> Tensor:
        count_N1 = degrees_N.clamp(min=1)[:, None].double()
        mean_NG, var_NG = self.sum_NG / count_N1, self.squares_NG / count_N1
        del self.sum_NG, self.squares_NG
        var_NG = var_NG.addcmul_(mean_NG, mean_NG, value=-1).to(self.dtype)
        self.count_N1, self.mean_NG = count_N1.to(self.dtype), mean_NG.to(self.dtype)
        self.open_NG = var_NG > 0
        var_NG = var_NG.clamp(min=0)
        self.out_NG = self.open_NG  # a placeholder, not read
        if not self.root:
            return var_NG
        self.out_NG = (var_NG + 1e-5).sqrt()
        return self.out_NG

    def prepare(self, grad_NG: Tensor) -> None:
        if self.root:
            grad_NG = grad_NG / (2 * self.out_NG)
        self.grad_NG = 2 * grad_NG * self.open_NG / self.count_N1

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NG[rows] * (m - self.mean_NG[rows]), None


class Softmax(_Held):
    """Sum weighted by the softmax of the logits over each node's in-edges.

    An edge with logit -inf has weight 0; a node whose edges all have it gets 0.
    """

    lasting = ("lse_NG", "out_NG")
    scratch = ("row_max_NG", "row_sum_NG", "weighted_NG")

    def __init__(self, like: Tensor) -> None:
        self.row_max_NG, self.dtype = torch.full_like(like, -torch.inf), like.dtype
        self.row_sum_NG = torch.zeros_like(like, dtype=torch.float64)
        self.weighted_NG = torch.zeros_like(like, dtype=torch.float64)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        logit = _needed(logit)
        own, inverse = torch.unique_consecutive(rows, return_inverse=True)
        before = self.row_max_NG[own]
        row_max = before.scatter_reduce(0, inverse[:, None].expand_as(logit), logit, "amax")
        base = row_max.masked_fill(row_max == -torch.inf, 0)
        factor = (before - base).exp()
        share = (logit - base[inverse]).exp()
        row_sum, weighted = self.row_sum_NG[own].mul_(factor), self.weighted_NG[own].mul_(factor)
        row_sum.index_add_(0, inverse, share.double())
        weighted.index_add_(0, inverse, (share * m).double())
        self.row_sum_NG[own], self.weighted_NG[own] = row_sum, weighted
        self.row_max_NG[own] = row_max

    def finish(self, degrees_N: Tensor) -> Tensor:
        none_NG = self.row_sum_NG == 0
        row_sum_NG = self.row_sum_NG.masked_fill(none_NG, 1.0)
        self.lse_NG = (self.row_max_NG.masked_fill(none_NG, 0.0) + row_sum_NG.log()).to(self.dtype)
        self.out_NG = (self.weighted_NG / row_sum_NG).to(self.dtype)
        del self.row_sum_NG, self.weighted_NG, self.row_max_NG
        return self.out_NG

    def prepare(self, grad_NG: Tensor) -> None:
        self.grad_NG = grad_NG

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        share = (_needed(logit) - self.lse_NG[rows]).exp()
        grad = share * self.grad_NG[rows]
        return grad, grad * (m - self.out_NG[rows])


def make(name: str, like_NG: Tensor) -> Reduction:
    """Return the reduction called `name` for results with the shape and dtype of `like_NG`."""
    if name in ("sum", "mean"):
        return Sum(like_NG, mean=name == "mean")
    if name in ("max", "min"):
        return Extremum(like_NG, sign=1 if name == "max" else -1)
    if name in ("var", "std"):
        return Variance(like_NG, root=name == "std")
    if name == "softmax":
        return Softmax(like_NG)
    raise InputError("aggr must be sum, mean, max, min, var, std or softmax", value=name)


def _needed(logit: Tensor | None) -> Tensor:
    if logit is None:
        raise InputError("aggr softmax needs messages (value, logit)")
    return logit
