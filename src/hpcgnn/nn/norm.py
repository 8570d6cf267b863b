"""Normalisation with statistics over the nodes of all ranks; conversion of torch's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm
from torch.overrides import has_torch_function

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.arguments import check_graph, check_module
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar.autograd import first_order

# Norms of PyTorch Geometric with statistics over nodes; its BatchNorm contains torch's.
_OVER_NODES = ("DiffGroupNorm", "GraphNorm", "InstanceNorm", "MeanSubtractionNorm", "PairNorm")
SYNCHRONISED = (
    "hpcgnn.convert_norms(model, graph) makes batch normalisation cover all ranks, as does "
    "hpcgnn.nn.GraphNorm"
)
_SLAB, _GPU_SLAB = 1 << 12, 1 << 18  # rows converted to float64 at a time
_FEW = 1 << 8  # most rows that may be summed in float32 one after another


def _slab(x_NF: Tensor) -> int:
    """Return the rows of a slab: more on a GPU, where each slab costs launches."""
    return _GPU_SLAB if _on_gpu(x_NF) else _SLAB


def _on_gpu(x_NF: Tensor) -> bool:
    return x_NF.device.type == "cuda"


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalisation of each node's own features (Ba et al. 2016)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:  # type: ignore[override]
        if len(x) <= _FEW or x.dtype != torch.float32 or x.device.type != "cpu":
            return super().forward(x).to(x.dtype)
        if has_torch_function((x,)):  # when tracing a message's weights
            return super().forward(x)
        result: Tensor = _LayerNorm.apply(x, self.weight, self.bias, self.eps)
        return result


class _LayerNorm(torch.autograd.Function):
    """Layer normalisation whose weights' gradients are summed in float64.

    torch's sums them in float32, row by row, on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y_NF, mean_N1, rstd_N1 = torch.native_layer_norm(x_NF, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x_NF, weight, bias, mean_N1, rstd_N1)
        ctx.eps = eps
        return y_NF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NF,), (x_NF, weight, bias, mean_N1, rstd_N1) = grads, ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for double backward
            y_NF = functional.layer_norm(x_NF, weight.shape, weight, bias, ctx.eps)
            wanted = [t for t, needs in zip((x_NF, weight, bias), needed, strict=True) if needs]
            found = iter(torch.autograd.grad(y_NF, wanted, grad_NF, create_graph=True))
            return *(next(found) if needs else None for needs in needed), None
        whole = (grad_NF, x_NF, weight.shape, mean_N1, rstd_N1, weight, bias)
        only_x = [needed[0], False, False]
        grad_x = torch.ops.aten.native_layer_norm_backward(*whole, only_x)[0]
        sums = torch.zeros(2, len(weight), dtype=torch.float64)
        scratch_SF = x_NF.new_empty(min(_SLAB, len(x_NF)), x_NF.shape[1])
        for low in range(0, len(x_NF), _SLAB):
            rows = slice(low, low + _SLAB)
            grad_SF, part_SF = grad_NF[rows], scratch_SF[: len(grad_NF[rows])]
            torch.sub(x_NF[rows], mean_N1[rows], out=part_SF).mul_(rstd_N1[rows]).mul_(grad_SF)
            sums[0] += part_SF.sum(0)  # torch sums these in a tree
            sums[1] += grad_SF.sum(0)
        grad_weight, grad_bias = sums.to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None


class BatchNorm(torch.nn.Module):
    """Batch normalisation over all nodes of the graph (Ioffe & Szegedy 2015).

    Arguments and buffers are those of `torch.nn.BatchNorm1d`; the batch is the whole graph. As with
    torch's, rounding errors in a column whose values are (nearly) the same for all nodes, as
    `GENConv` gives for equal rows, are multiplied by `1 / sqrt(eps)`, 316, and results on
    different numbers of ranks differ by as much.
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
        result: Tensor = _BatchNorm.apply(x, self.weight, self.bias, mean, rstd, graph)
        return result.to(dtype)

    def gradient_of_shift(self, grad: Tensor) -> Tensor:
        """Return the gradient of a shift of all rows: 0 in training, instead of rounding noise."""
        return grad * 0 if self.training else grad


def _statistics(
    graph: PartitionedGraph, x_NF: Tensor, mean_share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean over all nodes and the mean square of x - mean_share * mean.

    Both are float64. Collective.
    """
    comm, count = graph.ring.comm, max(graph.num_nodes, 1)
    kind = _Moments if _on_gpu(x_NF) and len(x_NF) else _TwoPasses
    own = kind(x_NF)
    mean = comm.allreduce(own.sum(), where="norm mean") / count
    shift = mean if mean_share is None else mean * mean_share
    return mean, comm.allreduce(own.squares(shift), where="norm variance") / count


class _TwoPasses:
    """Sums over local nodes, float64."""

    def __init__(self, x_NF: Tensor) -> None:
        self._x_NF = x_NF

    def sum(self) -> Tensor:
        return self._x_NF.sum(0, dtype=torch.float64)

    def squares(self, shift: Tensor) -> Tensor:
        """Return the sums of (x - shift)^2."""
        squares = torch.zeros_like(shift)
        for rows in self._x_NF.split(_slab(self._x_NF)):
            squares += (rows - shift).square_().sum(0)
        return squares


class _Moments:
    """The same from one pass over x, which must have rows: for GPUs, where passes are what costs.

    Its means and variances are rounded to the dtype of x.
    """

    def __init__(self, x_NF: Tensor) -> None:
        self._count = len(x_NF)
        self._var, self._mean = (t.double() for t in torch.var_mean(x_NF, 0, correction=0))

    def sum(self) -> Tensor:
        return self._mean * self._count

    def squares(self, shift: Tensor) -> Tensor:
        return (self._var + (self._mean - shift).square()) * self._count


def _gradient_sums(grad_NF: Tensor, x_NF: Tensor, shift: Tensor, rstd: Tensor) -> Tensor:
    """Return local nodes' sums of g and of g * (x - shift) * rstd: float64 `[2, F]`.

    On GPUs each term is rounded to the dtype of x, which halves the bytes that are moved.
    """
    if _on_gpu(x_NF):
        shift = shift.to(x_NF.dtype)
    sums = torch.zeros(2, x_NF.shape[1], dtype=torch.float64, device=x_NF.device)
    for grad, rows in zip(grad_NF.split(_slab(x_NF)), x_NF.split(_slab(x_NF)), strict=True):
        sums[0] += grad.sum(0, dtype=torch.float64)
        sums[1] += (rows - shift).mul_(grad).sum(0, dtype=torch.float64)
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
        scale = weight * rstd.to(x_NF.dtype)
        return torch.addcmul(bias - mean.to(x_NF.dtype) * scale, x_NF, scale)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, weight, exact_mean, exact_rstd = ctx.saved_tensors
        grad_NF, graph = grads[0], ctx.graph
        local = _gradient_sums(grad_NF, x_NF, exact_mean, exact_rstd)
        mean, rstd = exact_mean.to(x_NF.dtype), exact_rstd.to(x_NF.dtype)
        total = graph.ring.comm.allreduce(local, where="batch norm backward")
        grad_bias, grad_weight = local.to(x_NF.dtype)
        share_bias, share_weight = (total / max(graph.num_nodes, 1)).to(x_NF.dtype)
        slope = -share_weight * rstd
        grad_x = torch.addcmul(-share_bias - mean * slope, x_NF, slope).add_(grad_NF)
        return grad_x.mul_(weight * rstd), grad_weight, grad_bias, None, None, None


class GraphNorm(torch.nn.Module):
    """Normalisation over the graph with a learned share of the mean (Cai et al. 2021).

    Parameters are those of PyTorch Geometric's `GraphNorm` on a batch of one graph.
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

    def gradient_of_shift(self, grad: Tensor) -> Tensor:
        """Return the gradient of a shift of all rows: 0 where the whole mean is subtracted."""
        return grad * (self.mean_scale.detach() != 1)


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
        """Return the gradients, with sums over all nodes.

        With c = (x - shift) rstd, the gradient of x - shift is e = weight rstd (g - c <g, c> / n),
        and that of shift is -sum(e).
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
        # Gradients of parameters are summed over the ranks later.
        grad_mean_scale = into_shift * mean * (len(x_NF) / count)
        grad_bias, grad_weight = local.to(dtype)
        return grad_x, grad_weight, grad_bias, grad_mean_scale.to(dtype), None, None


NORMS: dict[str, type[torch.nn.Module]] = {
    "layer": LayerNorm,
    "batch": BatchNorm,
    "graph": GraphNorm,
}


def unsynchronised(model: torch.nn.Module) -> list[str]:
    """Return the names of modules whose statistics cover one rank's rows only."""
    return [
        f"{name or 'module'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if (isinstance(module, TorchBatchNorm) and not isinstance(module, BatchNorm1d))
        or (
            type(module).__module__.startswith("torch_geometric.nn.norm")
            and type(module).__name__ in _OVER_NODES
        )
    ]


def convert_norms(model: torch.nn.Module, graph: PartitionedGraph) -> torch.nn.Module:
    """Replace each `torch.nn.BatchNorm1d` by one whose batch is the rows of all ranks.

    It is called as before, `norm(x)`, on all ranks. Names stay, and parameters and buffers are the
    same objects, so that an optimizer made before still holds them.

    Returns:
        The model, changed in place; a new module if the model is itself a `BatchNorm1d`.

    Raises:
        InputError: the model has batch normalisation of another kind than `BatchNorm1d`.
    """
    check_module(model, "convert_norms")
    check_graph(graph, "convert_norms")
    if isinstance(model, TorchBatchNorm) and not isinstance(model, BatchNorm1d):
        return BatchNorm1d.of(model, graph.comm)
    for name, module in model.named_children():
        setattr(model, name, convert_norms(module, graph))
    return model


class BatchNorm1d(torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of rows `[m, F]`, with statistics over the rows of all ranks."""

    comm: Communicator

    @staticmethod
    def of(norm: TorchBatchNorm, comm: Communicator) -> BatchNorm1d:
        if not isinstance(norm, torch.nn.BatchNorm1d):
            raise InputError(
                f"{type(norm).__name__} can't be made to cover all ranks: only BatchNorm1d can"
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
    """(x - mean) rstd, with gradients through mean and rstd too, which cover all ranks."""

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
