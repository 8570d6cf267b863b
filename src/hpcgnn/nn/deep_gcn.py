"""Residual blocks around a convolution (Li et al. 2019, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.layer import check_keywords, hops_of
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm

_BLOCKS = ("res+", "res", "dense", "plain")


class DeepGCNLayer(torch.nn.Module):
    """As PyTorch Geometric's `DeepGCNLayer`, called as `layer(graph, x)`.

    `res+`: `x + conv(dropout(act(norm(x))))`, the norm before the convolution, as in DeeperGCN.
    `res`, `dense`, `plain`: norm and activation after it, then the sum with `x`, `x` beside it, or
    neither, then dropout.

    Args:
        conv: called as `conv(graph, x, ...)`.
        norm: one of this package's, called as `norm(graph, x)`, or a module of single rows.
        act: called as `act(x)`.
        dropout: of node rows, the same on every number of ranks.
        ckpt_grad: layers of this package compute messages again anyway: False.
        layer: tells the dropout masks of one model apart; drawn by `nn.numbers` if not given.
    """

    def __init__(
        self,
        conv: torch.nn.Module,
        norm: torch.nn.Module | None = None,
        act: torch.nn.Module | None = None,
        block: str = "res+",
        dropout: float = 0.0,
        ckpt_grad: bool = False,
        layer: int | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, object] = {"block": block.lower(), "ckpt_grad": ckpt_grad}
        check_keywords(self, given, block=_BLOCKS, ckpt_grad=(False,))
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            raise InputError(
                "DeepGCNLayer: this norm would see one rank's nodes alone; take hpcgnn.nn.BatchNorm"
            )
        self.conv, self.norm, self.act, self.block = conv, norm, act, block.lower()
        self.drop = Dropout(dropout, layer)

    @property
    def dropout(self) -> float:
        return self.drop.p

    @property
    def hops(self) -> int | None:
        """Of the convolution; None where the norm's statistics run over all nodes."""
        return None if isinstance(self.norm, BatchNorm | GraphNorm) else hops_of(self.conv)

    def reset_parameters(self) -> None:
        for module in (self.conv, self.norm):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def forward(self, graph: PartitionedGraph, x: Tensor, *args: object) -> Tensor:
        """`[n, F]` to rows of the same width, with `dense` of both widths together."""
        if self.block == "res+":
            inner: Tensor = self.conv(graph, self.drop(graph, self._norm_act(graph, x)), *args)
            return x + inner
        h = self._norm_act(graph, self.conv(graph, x, *args))
        if self.block == "res":
            h = x + h
        elif self.block == "dense":
            h = torch.cat([x, h], dim=-1)
        result: Tensor = self.drop(graph, h)
        return result

    def _norm_act(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        if isinstance(self.norm, BatchNorm | GraphNorm | LayerNorm):
            x = self.norm(graph, x)
        elif self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)

    def extra_repr(self) -> str:
        return f"block={self.block}"
