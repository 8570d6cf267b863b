"""Normalisations whose statistics run over the nodes of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar.autograd import first_order

_SLAB, _GPU_SLAB = 1 << 12, 1 << 18  # rows that are there in float64 at a time


def _slab(x_NF: Tensor) -> int:
    """Where each slab costs launches, few of them."""
    return _GPU_SLAB if x_NF.device.type == "cuda" else _SLAB


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalisation of each node's own features (Ba et al. 2016)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).to(x.dtype)


class BatchNorm(torch.nn.Module):
    """Batch normalisation over all nodes of the graph (Ioffe & Szegedy 2015).

    Arguments and buffers as `torch.nn.BatchNorm1d`; the batch is the whole graph.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, in_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = torch.nn.Parameter(torch.ones(in_channels))
        self.bias = torch.nn.Parameter(torch.zeros(in_channels))
        self.register_buffer("running_mean", torch.zeros(in_channels))
        self.register_buffer("running_var", torch.ones(in_channels))

    def reset_parameters(self) -> None:
        for ones, zeros in ((self.weight, self.bias), (self.running_var, self.running_mean)):
            torch.nn.init.ones_(ones)
            torch.nn.init.zeros_(zeros)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # torch's own layers count batches
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.to(sum_type(x.dtype))
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            return torch.addcmul(shift, x, scale).to(dtype)
        mean, var = _statistics(graph, x.detach())
        correction = graph.num_nodes / max(graph.num_nodes - 1, 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * correction).to(self.running_var.dtype), self.momentum)
        rstd = torch.rsqrt(var + self.eps)
        result: Tensor = _BatchNorm.apply(
            x, self.weight, self.bias, mean.to(x.dtype), rstd.to(x.dtype), graph
        )
        return result.to(dtype)

    def gradient_of_shift(self, grad_F: Tensor) -> Tensor:
        """Of what is added to all rows alike: 0, where rounding leaves noise, while training."""
        return grad_F * 0 if self.training else grad_F


def _statistics(
    graph: PartitionedGraph, x_NF: Tensor, mean_share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean over all nodes, and mean square of x - mean_share * mean: float64, two passes."""
    comm, count = graph.ring.comm, max(graph.num_nodes, 1)
    mean = comm.allreduce(x_NF.sum(0, dtype=torch.float64), where="norm mean") / count
    shift = mean if mean_share is None else mean * mean_share
    squares = torch.zeros_like(mean)
    for rows in x_NF.split(_slab(x_NF)):
        squares += (rows - shift).square_().sum(0)
    return mean, comm.allreduce(squares, where="norm variance") / count


def _gradient_sums(grad_NF: Tensor, x_NF: Tensor, shift: Tensor, rstd: Tensor) -> Tensor:
    """Sums over the local nodes of g and of g * (x - shift) * rstd: float64 `[2, F]`."""
    sums = torch.zeros(2, x_NF.shape[1], dtype=torch.float64, device=x_NF.device)
    for grad, rows in zip(grad_NF.split(_slab(x_NF)), x_NF.split(_slab(x_NF)), strict=True):
        sums[0] += grad.sum(0, dtype=torch.float64)
        sums[1] += (rows - shift).mul_(grad).sum(0)
    sums[1] *= rstd
    return sums


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        graph: PartitionedGraph,
    ) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(x_NF, weight, mean, rstd)
        scale = weight * rstd
        return torch.addcmul(bias - mean * scale, x_NF, scale)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, weight, mean, rstd = ctx.saved_tensors
        grad_NF, graph = grads[0], ctx.graph
        local = _gradient_sums(grad_NF, x_NF, mean.double(), rstd.double())
        total = graph.ring.comm.allreduce(local, where="batch norm backward")
        grad_bias, grad_weight = local.to(x_NF.dtype)
        share_bias, share_weight = (total / max(graph.num_nodes, 1)).to(x_NF.dtype)
        slope = -share_weight * rstd
        grad_x = torch.addcmul(-share_bias - mean * slope, x_NF, slope).add_(grad_NF)
        return grad_x.mul_(weight * rstd), grad_weight, grad_bias, None, None, None


class GraphNorm(torch.nn.Module):
    """Normalisation over the graph with a learned share of the mean (Cai et al. 2021).

    Parameters as PyTorch Geometric's `GraphNorm` on a batch of one graph.
    """

    def __init__(self, in_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(in_channels))
        self.bias = torch.nn.Parameter(torch.zeros(in_channels))
        self.mean_scale = torch.nn.Parameter(torch.ones(in_channels))

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.to(sum_type(x.dtype))
        result: Tensor = _GraphNorm.apply(
            x, self.weight, self.bias, self.mean_scale, self.eps, graph
        )
        return result.to(dtype)

    def gradient_of_shift(self, grad_F: Tensor) -> Tensor:
        """Of what is added to all rows alike: 0 where all of the mean is taken off."""
        return grad_F * (self.mean_scale.detach() != 1)


class _GraphNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean_scale: Tensor,
        eps: float,
        graph: PartitionedGraph,
    ) -> Tensor:
        mean, var = _statistics(graph, x_NF, mean_scale)
        rstd = torch.rsqrt(var + eps)
        ctx.graph = graph
        ctx.save_for_backward(x_NF, weight, mean_scale, mean, rstd)
        centred_NF = x_NF - (mean * mean_scale).to(x_NF.dtype)
        return torch.addcmul(bias.to(x_NF.dtype), centred_NF, (weight * rstd).to(x_NF.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With c = (x - shift) rstd, summed over all nodes:

        into x - shift flows e = weight rstd (g - c <g, c> / n), and of that -sum(e) into shift.
        """
        x_NF, weight, mean_scale, mean, rstd = ctx.saved_tensors
        grad_NF, graph, dtype = grads[0], ctx.graph, weight.dtype
        shift, count = mean * mean_scale, max(graph.num_nodes, 1)
        local = _gradient_sums(grad_NF, x_NF, shift, rstd)
        total = graph.ring.comm.allreduce(local, where="norm backward")
        share, scale = total[1] / count, weight * rstd
        into_shift = -scale * (total[0] - share * rstd * (mean - shift) * count)
        grad_x = torch.empty_like(x_NF)
        for low in range(0, len(x_NF), _slab(x_NF)):
            rows = slice(low, low + _slab(x_NF))
            centred = (x_NF[rows] - shift) * rstd
            grad = (grad_NF[rows] - centred * share) * scale
            grad_x[rows] = grad + into_shift * mean_scale / count
        # Parameters' gradients are added up over the ranks later.
        grad_mean_scale = into_shift * mean * (len(x_NF) / count)
        grad_bias, grad_weight = local.to(dtype)
        return grad_x, grad_weight, grad_bias, grad_mean_scale.to(dtype), None, None


NORMS: dict[str, type[torch.nn.Module]] = {
    "layer": LayerNorm,
    "batch": BatchNorm,
    "graph": GraphNorm,
}
