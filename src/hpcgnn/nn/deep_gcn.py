"""DeeperGCN (Li et al. 2019, 2020): generalised aggregation and residual blocks of layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.layer import check_keywords, check_width, hops_of
from hpcgnn.nn.linear import Linear, NodeFeatures
from hpcgnn.nn.message_passing import reduced_messages
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.products import dense_rows

_AGGREGATIONS = ("softmax", "softmax_sg", "powermean", "power", "add", "sum", "mean", "max", "min")
_LEAST, _MOST = 1e-4, 100.0  # the range of values whose powers are taken
_BLOCKS = ("res+", "res", "dense", "plain")


class GENConv(torch.nn.Module):
    """The generalised convolution `x'_i = mlp(x_i + aggr_j (relu(x_j + e_ji) + eps))`.

    Like PyTorch Geometric's `GENConv`.

    Args:
        aggr: `softmax` (weighted by its own softmax, at inverse temperature `t`), `softmax_sg`
            (the same without gradients through the weights), `powermean` (`power`), `add` (`sum`),
            `mean`, `max` or `min`.
        learn_t, learn_p: whether `t` and `p` are learned.
        msg_norm: whether to scale the aggregate to the norm of the node's own row, times a factor.
        norm: normalisation in the MLP: `batch` (over all ranks), `layer` or None.
        edge_dim: width of the graph's edge features, if they are added to neighbours' rows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        aggr: str = "softmax",
        t: float = 1.0,
        learn_t: bool = False,
        p: float = 1.0,
        learn_p: bool = False,
        msg_norm: bool = False,
        learn_msg_scale: bool = False,
        norm: str | None = "batch",
        num_layers: int = 2,
        expansion: int = 2,
        eps: float = 1e-7,
        bias: bool = False,
        edge_dim: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, {"norm": norm, **keywords}, norm=("batch", "layer", None))
        for name, width in (("in_channels", in_channels), ("out_channels", out_channels)):
            check_width(self, name, width, 1)
        check_width(self, "num_layers", num_layers, 1)
        if aggr not in _AGGREGATIONS:
            raise InputError(f"GENConv: aggr must be one of {', '.join(_AGGREGATIONS)}", value=aggr)
        self.in_channels, self.out_channels, self.edge_dim = in_channels, out_channels, edge_dim
        self.aggr = "powermean" if aggr == "power" else aggr
        self.eps, self.norm, self.layer = eps, norm, 0
        self.aggr_module = _Exponent(self.aggr, t, learn_t, p, learn_p)
        other = in_channels != out_channels
        self.lin_src = Linear(in_channels, out_channels, bias=bias) if other else None
        fits = edge_dim is None or edge_dim == out_channels
        self.lin_edge = None if fits else Linear(edge_dim, out_channels, bias=bias)  # type: ignore[arg-type]
        self.lin_dst = Linear(in_channels, out_channels, bias=bias) if other else None
        widths = [out_channels, *[out_channels * expansion] * (num_layers - 1), out_channels]
        self.mlp = NormedMLP(widths, norm, bias)
        self.msg_norm = MessageNorm(learn_msg_scale) if msg_norm else None

    @property
    def hops(self) -> int | None:
        """1, or None if statistics of a norm run over all nodes."""
        return None if self.norm == "batch" and len(self.mlp) > 1 else 1

    def reset_parameters(self) -> None:
        modules = (
            self.aggr_module,
            self.lin_src,
            self.lin_edge,
            self.lin_dst,
            self.mlp,
            self.msg_norm,
        )
        for module in modules:
            if module is not None:
                module.reset_parameters()

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output."""
        return self.mlp[-1].bias  # type: ignore[return-value]

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, in_channels]` to `[n, out_channels]`."""
        like = self.mlp[0].weight
        check_rows(graph, x, who="GENConv", width=self.in_channels, constant=True, like=like)  # type: ignore[arg-type]
        check_edges(graph, self.edge_dim, who="GENConv")
        if self.lin_src is None or self.lin_dst is None:
            source_NF = own_NF = dense_rows(x, graph.node_ids.device)
        else:
            source_NF, own_NF = self.lin_src(x), self.lin_dst(x)
        kinds = {"softmax_sg": "softmax", "powermean": "mean"}
        kind = kinds.get(self.aggr, self.aggr)
        out_NF = self.aggr_module.root(
            reduced_messages(self, graph, source_NF, self._message, kind)
        )
        if self.msg_norm is not None:
            length_of = x if isinstance(x, Tensor) else dense_rows(x, graph.node_ids.device)
            out_NF = self.msg_norm(length_of, out_NF)
        result: Tensor = self.mlp(graph, out_NF + own_NF)
        return result

    def _message(
        self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.edge_dim is not None and edge.features is not None:
            features = edge.features.to(x_src.dtype)
            x_src = x_src + (features if self.lin_edge is None else self.lin_edge(features))
        value = self.aggr_module.power(torch.relu(x_src) + self.eps)
        if self.aggr == "softmax":
            return value, value * self.aggr_module.t
        return (value, value.detach() * self.aggr_module.t) if self.aggr == "softmax_sg" else value

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, aggr={self.aggr}"


class _Exponent(torch.nn.Module):
    """The inverse temperature of a softmax, and the power of a mean."""

    t: Tensor | float
    p: Tensor | float

    def __init__(self, aggr: str, t: float, learn_t: bool, p: float, learn_p: bool) -> None:
        super().__init__()
        self.initial = {"t": t, "p": p}
        learned = {"t": learn_t and aggr == "softmax", "p": learn_p and aggr == "powermean"}
        for name, value in self.initial.items():
            number = torch.tensor([float(value)])
            setattr(self, name, torch.nn.Parameter(number) if learned[name] else value)
        self.powers = aggr == "powermean" and (learned["p"] or p != 1)

    def reset_parameters(self) -> None:
        for name, value in self.initial.items():
            number = getattr(self, name)
            if isinstance(number, Tensor):
                number.data.fill_(value)

    def power(self, value: Tensor) -> Tensor:
        return value.clamp(_LEAST, _MOST).pow(self.p) if self.powers else value

    def root(self, mean: Tensor) -> Tensor:
        return mean.clamp(_LEAST, _MOST).pow(1.0 / self.p) if self.powers else mean


class NormedMLP(torch.nn.Sequential):
    """Linear maps with a norm and a ReLU between them; norms run over the nodes of all ranks."""

    def __init__(self, widths: list[int], norm: str | None, bias: bool) -> None:
        modules: list[torch.nn.Module] = []
        kinds = {"batch": BatchNorm, "layer": LayerNorm}
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            modules.append(Linear(inputs, outputs, bias=bias))
            if i < len(widths) - 1:
                if norm is not None:
                    modules.append(kinds[norm](outputs))
                modules += [torch.nn.ReLU(), torch.nn.Dropout(0.0)]
        super().__init__(*modules)

    def reset_parameters(self) -> None:
        for module in self:
            if isinstance(module, Linear | BatchNorm | LayerNorm):
                module.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:  # type: ignore[override]
        for module in self:
            x = module(graph, x) if isinstance(module, BatchNorm | LayerNorm) else module(x)
        return x


class MessageNorm(torch.nn.Module):
    """Message normalisation: `scale * |x| * m / |m|`, row by row; `scale` is learned or 1."""

    def __init__(self, learn_scale: bool = False) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=learn_scale)

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.scale)

    def forward(self, x: Tensor, msg: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        return functional.normalize(msg, dim=-1) * length * self.scale


class DeepGCNLayer(torch.nn.Module):
    """A residual block like PyTorch Geometric's `DeepGCNLayer`, called as `layer(graph, x)`.

    `res+`: `x + conv(dropout(act(norm(x))))`, the norm before the convolution, as in DeeperGCN.
    `res`, `dense`, `plain`: norm and activation after the convolution, then `x` added to the
    result, concatenated with it, or left out, then dropout.

    Args:
        conv: called as `conv(graph, x, ...)`.
        norm: one of this package's, called as `norm(graph, x)`, or a module that acts on each row.
        act: called as `act(x)`.
        dropout: dropout probability of entries; masks are the same on any number of ranks.
        ckpt_grad: must be False: layers of this package recompute messages anyway.
        layer: number that distinguishes the dropout masks of one model; by default drawn from
            torch's generator.
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
                "DeepGCNLayer: this norm would see only one rank's nodes; use hpcgnn.nn.BatchNorm"
            )
        self.conv, self.norm, self.act, self.block = conv, norm, act, block.lower()
        self.drop = Dropout(dropout, layer)

    @property
    def dropout(self) -> float:
        return self.drop.p

    @property
    def hops(self) -> int | None:
        """Hops of the convolution, or None if the norm's statistics run over all nodes."""
        return None if isinstance(self.norm, BatchNorm | GraphNorm) else hops_of(self.conv)

    def reset_parameters(self) -> None:
        for module in (self.conv, self.norm):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def forward(self, graph: PartitionedGraph, x: Tensor, *args: object) -> Tensor:
        """Map `[n, F]` to rows of the same width; with `dense`, of both widths together."""
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
