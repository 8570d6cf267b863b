"""Dropout whose mask depends on seed, epoch, layer and node id alone, never on the partition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.features import HostRows, SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.nn.layer import layer_number
from hpcgnn.sar.autograd import first_order, is_own
from hpcgnn.sar.rectifier import ReluDropout


class Dropout(torch.nn.Module):
    """Dropout of entries with probability `p` while training; others are scaled by 1 / (1 - p).

    Args:
        p: probability in [0, 1).
        layer: number that distinguishes the masks of one model; by default drawn from torch's
            generator.
        relu: apply ReLU first, in the same pass.
        in_place: with `relu`, overwrite `x`, which no earlier operation may have saved.
    """

    def __init__(
        self, p: float, layer: int | None = None, relu: bool = False, *, in_place: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), found {p!r}")
        self.p, self.layer, self.relu, self.in_place = p, layer_number(layer), relu, in_place

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        p = self.p if self.training else 0.0
        result: Tensor
        if self.relu:
            result = rectified(x, self.rectifier(graph), in_place=self.in_place)
        elif p == 0:
            return x
        else:
            key = p, *graph.execution.mask_key(self.layer)
            result = _Dropout.apply(x, graph.node_ids, key)
        return result

    def rectifier(self, graph: PartitionedGraph) -> ReluDropout:
        """Return this module's ReLU and dropout for rows of `graph`, for a layer to apply."""
        p = self.p if self.training else 0.0
        key = graph.execution.mask_key(self.layer) if p else (0, 0, 0)
        return ReluDropout(graph.node_ids, p, key)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}" + (", relu" if self.relu else "")


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, ids_N: Tensor, key: tuple[float, int, int, int]) -> Tensor:
        ctx.ids_N, ctx.key = ids_N, key
        return _masked(x_NF, ids_N, key)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _masked(grads[0].contiguous(), ctx.ids_N, ctx.key), None, None


def _masked(x_NF: Tensor, ids_N: Tensor, key: tuple[float, int, int, int]) -> Tensor:
    p, seed, epoch, layer = key
    out_NF = torch.empty_like(x_NF, memory_format=torch.contiguous_format)
    kernels.dropout_nodes(x_NF, out_NF, ids_N, p=p, seed=seed, epoch=epoch, layer=layer)
    return out_NF


def rectified(
    x_NF: Tensor, then: ReluDropout, *, in_place: bool = False, bias_F: Tensor | None = None
) -> Tensor:
    """Apply `then` to `x`.

    Args:
        in_place: overwrite `x`, which no earlier operation may have saved.
        bias_F: added to `x` first, in the same pass; on a GPU only.
    """
    result: Tensor = _ReluDropout.apply(x_NF, bias_F, then, in_place)
    return result


class _ReluDropout(torch.autograd.Function):
    """ReLU and dropout that save a bit per entry, so that the next layer can free the output."""

    @staticmethod
    def forward(
        ctx: Any, x_NF: Tensor, bias_F: Tensor | None, rectifier: ReluDropout, in_place: bool
    ) -> Tensor:
        y_NF, sums = x_NF if in_place else torch.empty_like(x_NF), None
        passed = kernels.new_passed(x_NF, y_NF) if any(ctx.needs_input_grad) else None
        if bias_F is not None:
            sums = kernels.Sums(bias_K=bias_F.detach().to(sum_type(x_NF.dtype)))
        rectifier.apply(x_NF, y_NF, passed, sums)
        if in_place:
            ctx.mark_dirty(x_NF)
        ctx.rectifier, ctx.bias_dtype = rectifier, None if bias_F is None else bias_F.dtype
        ctx.save_for_backward(passed)
        return y_NF

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (passed,) = ctx.saved_tensors
        out_NF = grads[0] if is_own(grads) else None
        grad_NF, grad_bias = ctx.rectifier.gradient_of_passed(passed, grads[0], out_NF), None
        if ctx.bias_dtype is not None:
            grad_bias = grad_NF.sum(dim=0, dtype=ctx.bias_dtype)
        return grad_NF, grad_bias, None, None


def constant_dropout(
    graph: PartitionedGraph, x: SparseRows | HostRows, p: float
) -> SparseRows | HostRows:
    """Apply dropout to constant features; the mask depends on node id and column."""
    if isinstance(x, SparseRows):
        return sparse_dropout(graph, x, p)
    seed, epoch, _ = graph.execution.mask_key(0)

    def change(rows: slice, slab_SF: Tensor) -> None:
        kernels.dropout_nodes(
            slab_SF, slab_SF, graph.node_ids[rows], p=p, seed=seed, epoch=epoch, layer=0
        )

    return replace(x, change=change)


def sparse_dropout(graph: PartitionedGraph, x: SparseRows, p: float) -> SparseRows:
    """Apply dropout to the stored entries of sparse features."""
    counts = x.block.end - x.block.begin
    ids_E = torch.repeat_interleave(graph.node_ids, counts) * x.shape[1] + x.block.columns
    weight = _stored(x.block)
    kept_E1 = torch.empty_like(weight)[:, None]
    seed, epoch, _ = graph.execution.mask_key(0)
    kernels.dropout_nodes(weight[:, None], kept_E1, ids_E, p=p, seed=seed, epoch=epoch, layer=0)
    kept_E = kept_E1[:, 0]
    order = x.derived(_ColumnOrder())
    return replace(
        x,
        block=replace(x.block, weight=kept_E),
        transposed=replace(x.transposed, weight=kept_E[order]),
    )


@dataclass(frozen=True)
class _ColumnOrder:
    """The order of the stored entries by column."""

    def build(self, rows: SparseRows) -> Tensor:
        return torch.argsort(rows.block.columns, stable=True)


def _stored(block: Block) -> Tensor:
    if block.weight is None:
        return torch.ones(block.columns.shape[0], device=block.device)
    return block.weight
