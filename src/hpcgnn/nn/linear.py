"""Linear layers for dense and sparse node features; learned rows of nodes on their owners."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from hpcgnn.errors import InputError
from hpcgnn.graph.features import HostRows, NodeFeatures, SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_width
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_features
from hpcgnn.sar.products import (
    exceeds_chunk,
    factor_type,
    gathered,
    product,
    product_of_rows,
    product_type,
    readable,
    refill,
    shell,
    weight_gradient,
)

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def narrows_first(graph: PartitionedGraph, inputs: int, outputs: int) -> bool:
    """Return whether weights multiply dense features before the sum over neighbours.

    They always do with features that are not dense.
    """
    return graph.execution.narrow_first and outputs <= inputs


class Linear(torch.nn.Module):
    """A linear layer `y = x W^T + b` for `x` a `[n, F]` tensor, `SparseRows` or `HostRows`.

    Args:
        weight_initializer: `glorot` or `kaiming_uniform`, as in PyTorch Geometric's `Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        weight_initializer: str = "kaiming_uniform",
    ) -> None:
        super().__init__()
        check_width(self, "in_channels", in_channels)
        check_width(self, "out_channels", out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight_initializer = weight_initializer
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight_initializer == "glorot":
            glorot(self.weight)
        else:
            bound = 1 / math.sqrt(max(self.in_channels, 1))
            torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(max(self.in_channels, 1))
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: NodeFeatures) -> Tensor:
        check_features(
            x, who=type(self).__name__, width=self.in_channels, constant=True, like=self.weight
        )
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"


def glorot(weight: Tensor) -> None:
    """Fill `weight` uniformly in ±sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010).

    The fans are the last two dimensions.
    """
    bound = math.sqrt(6 / max(weight.shape[-2] + weight.shape[-1], 1))
    torch.nn.init.uniform_(weight, -bound, bound)


def zero(bias: Tensor | None) -> None:
    """Fill the bias, if there is one, with zeros."""
    if bias is not None:
        torch.nn.init.zeros_(bias)


def linear(x_NF: NodeFeatures, weight_GF: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """Return `x W^T + b`: `[n, F]` by `[G, F]` to `[n, G]`; 16-bit under autocast on a GPU."""
    if not isinstance(x_NF, Tensor):
        y_NG: Tensor = _ConstantLinear.apply(weight_GF, x_NF)
        return y_NG if bias_G is None else y_NG + bias_G
    return readable(_dense(x_NF, weight_GF, bias_G))


def projected(x_NF: NodeFeatures, weight_GF: Tensor) -> Tensor:
    """Return `x W^T` for a sum over neighbours: under bfloat16 autocast 16-bit, on a CPU too."""
    if not isinstance(x_NF, Tensor):
        return linear(x_NF, weight_GF)
    return gathered(_dense(x_NF, weight_GF), None)


def times(x_NF: Tensor, weight_FG: Tensor) -> Tensor:
    """Return `x W`, with gradients that stay exact over very many rows."""
    if exceeds_chunk(x_NF, weight_FG):
        return _dense(x_NF, weight_FG.t())
    return x_NF @ weight_FG


def add_product(y_NG: Tensor, x_NF: Tensor, weight_GF: Tensor) -> Tensor:
    """Add `x W^T` to `y`, in place, with a gradient that stays exact over very many rows."""
    if not weight_GF.requires_grad or not exceeds_chunk(x_NF, weight_GF):
        return y_NG.addmm_(x_NF, weight_GF.t())
    found: Tensor = _AddedProduct.apply(y_NG, x_NF, weight_GF)
    return found


def _dense(x_NF: Tensor, weight_GF: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """Apply `functional.linear` with gradients that stay exact over very many rows."""
    if has_torch_function((x_NF, weight_GF)):  # also when tracing a message's weights
        found: Tensor = handle_torch_function(_dense, (x_NF, weight_GF), x_NF, weight_GF, bias_G)
        return found
    dtype = product_type(x_NF.device)
    if dtype is not None and factor_type(dtype, x_NF.device) != dtype:
        with torch.autocast(x_NF.device.type, enabled=False):
            return _dense(x_NF.to(weight_GF.dtype), weight_GF, bias_G)
    plain = x_NF.dim() != 2 or dtype is not None
    if plain or not weight_GF.requires_grad or not exceeds_chunk(x_NF, weight_GF):
        return functional.linear(x_NF, weight_GF, bias_G)
    y_NG: Tensor = _DenseLinear.apply(x_NF, weight_GF, bias_G)
    return y_NG


class _DenseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, weight_GF: Tensor, bias_G: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NF, weight_GF)
        return functional.linear(x_NF, weight_GF, bias_G)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NG,), (of_x, of_weight, of_bias) = grads, ctx.needs_input_grad
        x_NF, weight_GF = ctx.saved_tensors
        parts = _of_factors(x_NF, weight_GF, grad_NG, of_x, of_weight)
        return *parts, grad_NG.sum(0) if of_bias else None


class _AddedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_NG: Tensor, x_NF: Tensor, weight_GF: Tensor) -> Tensor:
        ctx.save_for_backward(x_NF, weight_GF)
        ctx.mark_dirty(y_NG)
        return y_NG.addmm_(x_NF, weight_GF.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NG,), (_, of_x, of_weight) = grads, ctx.needs_input_grad
        x_NF, weight_GF = ctx.saved_tensors
        return grad_NG, *_of_factors(x_NF, weight_GF, grad_NG, of_x, of_weight)


def _of_factors(
    x_NF: Tensor, weight_GF: Tensor, grad_NG: Tensor, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and W from that of `x W^T`."""
    grad_x = grad_NG @ weight_GF if of_x else None
    if not of_weight:
        return grad_x, None
    if torch.is_grad_enabled():  # for double backward
        return grad_x, grad_NG.t() @ x_NF
    return grad_x, product_of_rows(grad_NG, x_NF).to(weight_GF.dtype)


class _ConstantLinear(torch.autograd.Function):
    """The product of constant features, sparse or in host memory, with weights."""

    @staticmethod
    def forward(ctx: Any, weight_GF: Tensor, x: SparseRows | HostRows) -> Tensor:
        ctx.x, held = shell(x)
        ctx.save_for_backward(*held)
        ctx.precision = product_type(weight_GF.device)
        with torch.autocast(weight_GF.device.type, enabled=False):
            return product(x, weight_GF, ctx.precision)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return weight_gradient(refill(ctx.x, ctx.saved_tensors), grads[0], ctx.precision), None


class ShardedParameter(torch.nn.Parameter):
    """A parameter of which each rank has its own rows, even after it was copied or pickled."""

    sharded = True

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuilt, (self.data, self.requires_grad)


def is_sharded(parameter: Tensor) -> bool:
    """Return whether each rank has its own rows of this parameter (learned node embeddings)."""
    return bool(getattr(parameter, "sharded", False))


def _rebuilt(data: Tensor, requires_grad: bool) -> ShardedParameter:
    return ShardedParameter(data, requires_grad)


class Embedding(torch.nn.Module):
    """Learned rows `[n, D]` of the local nodes.

    The initial row of a node, uniform in ±sqrt(6 / D), depends on the seed and its id alone.
    """

    def __init__(self, graph: PartitionedGraph, width: int, seed: int) -> None:
        super().__init__()
        check_width(self, "width", width)
        self.weight = ShardedParameter(initial_rows(graph.node_ids, width, seed))

    def forward(self, graph: PartitionedGraph) -> Tensor:
        if not isinstance(graph, PartitionedGraph) or len(self.weight) != graph.num_local_nodes:
            raise InputError(
                f"Embedding: it has rows for {len(self.weight)} nodes: call it with the part that "
                "it was made for"
            )
        return self.weight

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._keep_sharded()  # if it was assigned rather than copied

    def _apply(self, *args: Any, **keywords: Any) -> Embedding:
        super()._apply(*args, **keywords)
        self._keep_sharded()  # torch may swap parameters when it moves them
        return self

    def _keep_sharded(self) -> None:
        if not getattr(self.weight, "sharded", False):
            self.weight = ShardedParameter(self.weight.data, self.weight.requires_grad)
            self.weight.sharded = True  # for data of a tensor subclass


def initial_rows(ids_N: Tensor, width: int, seed: int) -> Tensor:
    """Return float32 `[n, width]`, uniform in ±sqrt(6 / width), from a counter-based generator."""
    word: np.ndarray = (
        ids_N.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(width)
        + np.arange(width, dtype=np.uint64)
        + np.uint64((seed + 1) * _GOLDEN & _MASK)
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    unit = ((word ^ (word >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / (1 << 24)
    return torch.from_numpy((2 * unit - 1) * np.float32(np.sqrt(6 / width))).to(ids_N.device)
