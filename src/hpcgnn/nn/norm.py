"""Normalisations whose statistics run over the nodes of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph import PartitionedGraph
from hpcgnn.kernels.checks import sum_type


class GlobalSum(torch.autograd.Function):
    """Sum over all ranks, the same result everywhere; gradients are summed over all ranks too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: PartitionedGraph) -> Tensor:
        ctx.graph = graph
        return graph.ring.comm.allreduce(x, where="global sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.ring.comm.allreduce(grads[0].contiguous(), where="global sum"), None


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalisation of each node's own features (Ba et al. 2016)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_NF).to(x_NF.dtype)


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

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        dtype, x_NF = x_NF.dtype, x_NF.to(sum_type(x_NF.dtype))
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            return torch.addcmul(shift, x_NF, scale).to(dtype)
        mean, var = _statistics(graph, x_NF.detach())
        correction = graph.num_nodes / max(graph.num_nodes - 1, 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * correction).to(self.running_var.dtype), self.momentum)
        result: Tensor = _BatchNorm.apply(
            x_NF, self.weight, self.bias, mean, torch.rsqrt(var + self.eps), graph
        )
        return result.to(dtype)


def _statistics(graph: PartitionedGraph, x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all nodes, summed in float64 about the mean: two passes."""
    comm, count = graph.ring.comm, max(graph.num_nodes, 1)
    mean = comm.allreduce(x_NF.sum(0, dtype=torch.float64), where="batch norm mean") / count
    shift = mean.to(x_NF.dtype)
    squares = torch.zeros_like(mean)
    for rows in x_NF.split(8192):
        squares += (rows - shift).square_().sum(0, dtype=torch.float64)
    var = comm.allreduce(squares, where="batch norm variance") / count
    return mean.to(x_NF.dtype), var.to(x_NF.dtype)


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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, weight, mean, rstd = ctx.saved_tensors
        grad_NF, graph = grads[0], ctx.graph
        local = torch.stack(
            [grad_NF.sum(0, dtype=torch.float64), (grad_NF * (x_NF - mean)).sum(0).double() * rstd]
        )
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

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        dtype, x_NF = x_NF.dtype, x_NF.to(sum_type(x_NF.dtype))
        count = max(graph.num_nodes, 1)
        mean = GlobalSum.apply(x_NF.sum(0), graph) / count
        centred_NF = x_NF - mean * self.mean_scale
        var = GlobalSum.apply(centred_NF.square().sum(0), graph) / count
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias, centred_NF, scale).to(dtype)


NORMS: dict[str, type[torch.nn.Module]] = {
    "layer": LayerNorm,
    "batch": BatchNorm,
    "graph": GraphNorm,
}
