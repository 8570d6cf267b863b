"""Reductions of messages at their destinations that run on while blocks arrive.

Each keeps a few rows per node, never anything per edge, and says in backward what gradient a
message gets from the gradient of the result. Sums run in float64: in float32 those of nodes with
very many in-edges stand still.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hpcgnn.errors import InputError


class Reduction(Protocol):
    """`add` every message, then `finish`; in backward `prepare` once, then `gradient` per piece.

    `state` hands out every array that backward needs, so that autograd can hold them and free
    them; `restore` takes them back. Messages `m` are `[e, M]`, `rows` int64 `[e]` are their
    destinations; logits as `m` or None.
    """

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None: ...
    def finish(self, degrees_N: Tensor) -> Tensor: ...
    def state(self) -> list[Tensor]: ...
    def restore(self, state: list[Tensor]) -> None: ...
    def prepare(self, grad_NM: Tensor) -> None: ...
    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]: ...


class _Held:
    """Arrays by name: those in `scratch` end with forward, those in `lasting` serve backward."""

    lasting: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()

    def state(self) -> list[Tensor]:
        for name in self.scratch:
            vars(self).pop(name, None)
        return [vars(self).pop(name) for name in self.lasting]

    def restore(self, state: list[Tensor]) -> None:
        vars(self).update(zip(self.lasting, state, strict=True))


class Sum(_Held):
    """Sum over in-edges; divided by their number as `mean`."""

    lasting = ("scale_N1",)
    scratch = ("total_NM",)

    def __init__(self, like: Tensor, mean: bool = False) -> None:
        self.total_NM, self.mean = torch.zeros_like(like, dtype=torch.float64), mean
        self.scale_N1 = like.new_ones(len(like), 1)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        self.total_NM.index_add_(0, rows, m.double())

    def finish(self, degrees_N: Tensor) -> Tensor:
        if self.mean:
            self.scale_N1 = 1 / degrees_N.clamp(min=1)[:, None].to(self.scale_N1.dtype)
        result = self.total_NM.mul_(self.scale_N1).to(self.scale_N1.dtype)
        del self.total_NM
        return result

    def prepare(self, grad_NM: Tensor) -> None:
        self.grad_NM = grad_NM * self.scale_N1

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NM[rows], None


class Extreme(_Held):
    """Maximum (sign 1) or minimum (sign -1); 0 without in-edges; ties share the gradient evenly."""

    lasting = ("best_NM", "ties_NM")

    def __init__(self, like: Tensor, sign: int) -> None:
        self.sign = sign  # NaN is better than any number, as in torch
        self.best_NM = torch.full_like(like, -torch.inf)
        self.ties_NM = torch.zeros_like(like)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        value = m * self.sign
        index = rows[:, None].expand_as(value)
        best_NM = self.best_NM.scatter_reduce(0, index, value, "amax")
        self.ties_NM.masked_fill_((best_NM > self.best_NM) | best_NM.isnan(), 0)
        self.best_NM = best_NM
        self.ties_NM.index_add_(0, rows, (value == best_NM[rows]).to(m.dtype))

    def finish(self, degrees_N: Tensor) -> Tensor:
        seen_NM = (self.ties_NM > 0) | self.best_NM.isnan()
        return torch.where(seen_NM, self.best_NM * self.sign, 0.0)

    def prepare(self, grad_NM: Tensor) -> None:
        self.grad_NM = grad_NM / self.ties_NM.clamp(min=1)

    def gradient(
        self, rows: Tensor, m: Tensor, logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.grad_NM[rows] * (m * self.sign == self.best_NM[rows]), None


class Spread(_Held):
    """Variance over in-edges, or its square root as `std` (with 1e-5 under the root)."""

    lasting = ("count_N1", "mean_NM", "open_NM", "out_NM")
    scratch = ("sum_NM", "squares_NM")

    def __init__(self, like: Tensor, root: bool) -> None:
        self.root, self.dtype = root, like.dtype
        self.sum_NM = torch.zeros_like(like, dtype=torch.float64)
        self.squares_NM = torch.zeros_like(self.sum_NM)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        m = m.double()
        self.sum_NM.index_add_(0, rows, m)
        self.squares_NM.index_add_(0, rows, m * m)

    def finish(self, degrees_N: Tensor) -> Tensor:
        count_N1 = degrees_N.clamp(min=1)[:, None].double()
        mean_NM, var_NM = self.sum_NM / count_N1, self.squares_NM / count_N1
        del self.sum_NM, self.squares_NM
        var_NM = var_NM.addcmul_(mean_NM, mean_NM, value=-1).to(self.dtype)
        self.count_N1, self.mean_NM = count_N1.to(self.dtype), mean_NM.to(self.dtype)
        self.open_NM = var_NM > 0
        var_NM = var_NM.clamp(min=0)
        self.out_NM = self.open_NM  # not read
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


class Softmax(_Held):
    """Sum weighted by the softmax of the logits over each node's in-edges.

    An edge whose logit is -inf counts nothing; a node where all are gets 0.
    """

    lasting = ("lse_NM", "out_NM")
    scratch = ("top_NM", "total_NM", "sum_NM")

    def __init__(self, like: Tensor) -> None:
        self.top_NM, self.dtype = torch.full_like(like, -torch.inf), like.dtype
        self.total_NM = torch.zeros_like(like, dtype=torch.float64)
        self.sum_NM = torch.zeros_like(like, dtype=torch.float64)

    def add(self, rows: Tensor, m: Tensor, logit: Tensor | None) -> None:
        logit = _needed(logit)
        top_NM = self.top_NM.scatter_reduce(0, rows[:, None].expand_as(logit), logit, "amax")
        base_NM = top_NM.masked_fill(top_NM == -torch.inf, 0)
        factor_NM = (self.top_NM - base_NM).exp()
        self.total_NM.mul_(factor_NM)
        self.sum_NM.mul_(factor_NM)
        share = (logit - base_NM[rows]).exp()
        self.total_NM.index_add_(0, rows, share.double())
        self.sum_NM.index_add_(0, rows, (share * m).double())
        self.top_NM = top_NM

    def finish(self, degrees_N: Tensor) -> Tensor:
        none_NM = self.total_NM == 0
        total_NM = self.total_NM.masked_fill(none_NM, 1.0)
        self.lse_NM = (self.top_NM.masked_fill(none_NM, 0.0) + total_NM.log()).to(self.dtype)
        self.out_NM = (self.sum_NM / total_NM).to(self.dtype)
        del self.total_NM, self.sum_NM, self.top_NM
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
