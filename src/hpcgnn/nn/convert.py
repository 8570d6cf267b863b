"""torch's batch normalisation, of a part of the nodes, turned into one over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.autograd import first_order


def unsynchronised(model: torch.nn.Module) -> list[str]:
    """Names of modules whose statistics are of one rank's rows alone."""
    return [
        f"{name or 'module'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, TorchBatchNorm) and not isinstance(module, BatchNorm1d)
    ]


def convert_norms(model: torch.nn.Module, graph: PartitionedGraph) -> torch.nn.Module:
    """Replace each `torch.nn.BatchNorm1d` by one whose batch are the rows of all ranks.

    It is called as before, `norm(x)`, by all ranks; names, parameters and buffers stay, the same
    objects, so that an optimizer made before still holds them.

    Returns:
        The model, changed in place; another module where it is itself a `BatchNorm1d`.

    Raises:
        InputError: it has batch normalisation of another kind than `BatchNorm1d`.
    """
    if isinstance(model, TorchBatchNorm) and not isinstance(model, BatchNorm1d):
        return BatchNorm1d.of(model, graph.comm)
    for name, module in model.named_children():
        setattr(model, name, convert_norms(module, graph))
    return model


class BatchNorm1d(torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of rows `[m, F]` whose statistics are those of all ranks' rows."""

    comm: Communicator

    @staticmethod
    def of(norm: TorchBatchNorm, comm: Communicator) -> BatchNorm1d:
        if not isinstance(norm, torch.nn.BatchNorm1d):
            raise InputError(
                f"{type(norm).__name__} can't be made to go over all ranks: only BatchNorm1d"
            )
        made = BatchNorm1d(norm.num_features, norm.eps, norm.momentum, affine=False)
        made.affine, made.track_running_stats = norm.affine, norm.track_running_stats
        made._parameters.update(norm._parameters)
        made._buffers.update(norm._buffers)
        made.comm = comm
        return made.train(norm.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNorm1d:
        copy = BatchNorm1d(self.num_features, self.eps, self.momentum, affine=False)
        memo[id(self)] = copy
        copy.affine, copy.track_running_stats = self.affine, self.track_running_stats
        for own, there in ((copy._parameters, self._parameters), (copy._buffers, self._buffers)):
            for name, value in there.items():
                if value is not None:
                    data = value.detach().clone()
                    kept = isinstance(value, torch.nn.Parameter)
                    own[name] = torch.nn.Parameter(data, value.requires_grad) if kept else data  # type: ignore[assignment]
        copy.comm = self.comm
        return copy.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.num_features:
            raise InputError(
                f"BatchNorm1d over all ranks takes rows of {self.num_features} numbers",
                value=tuple(x.shape),
            )
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        sums = torch.cat([x.detach().sum(0, dtype=torch.float64), _count(x)])
        total = self.comm.allreduce(sums, where="norm mean")
        count = float(total[-1])
        mean = total[:-1] / max(count, 1)
        squares = (x.detach() - mean).square_().sum(0)
        var = self.comm.allreduce(squares, where="norm variance") / max(count, 1)
        if self.training:
            self._track(mean, var * (count / max(count - 1, 1)))
        normed: Tensor = _Normalise.apply(x, mean, torch.rsqrt(var + self.eps), count, self.comm)
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1 / float(self.num_batches_tracked)
        share = 0.0 if share is None else share
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


def _count(x: Tensor) -> Tensor:
    return torch.full((1,), len(x), dtype=torch.float64, device=x.device)


class _Normalise(torch.autograd.Function):
    """(x - mean) rstd, whose gradient also goes by way of mean and rstd, over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, rstd: Tensor, count: float, comm: Communicator
    ) -> Tensor:
        normed = ((x - mean) * rstd).to(x.dtype)
        ctx.save_for_backward(normed, rstd)
        ctx.count, ctx.comm = count, comm
        return normed

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, rstd = ctx.saved_tensors
        grad = grads[0]
        sums = torch.stack(
            [grad.sum(0, dtype=torch.float64), (grad * normed).sum(0, dtype=torch.float64)]
        )
        share = ctx.comm.allreduce(sums, where="batch norm backward") / max(ctx.count, 1)
        grad_x = (grad - share[0] - normed * share[1]) * rstd
        return grad_x.to(grad.dtype), None, None, None, None
