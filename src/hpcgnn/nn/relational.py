"""R-GCN (Schlichtkrull et al. 2018) and R-GAT (Busbridge et al. 2019)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.attention import glorot_linear
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import NodeFeatures, glorot, times, zero
from hpcgnn.nn.message_passing import reduced_messages
from hpcgnn.sar.aggregation import in_degrees
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.products import dense_rows
from hpcgnn.sar.relational import relational_sum

_MODS = (None, "additive", "scaled", "f-additive", "f-scaled")
_MECHANISMS = ("across-relation", "within-relation")
_MODES = ("additive-self-attention", "multiplicative-self-attention")


class RGCNConv(torch.nn.Module):
    """The relational convolution `x'_i = root^T x_i + b + sum_r mean_{j in N_r(i)} W_r^T x_j`.

    Arguments, parameters and initialisation are those of PyTorch Geometric's `RGCNConv`; with
    `num_bases`, `W_r = sum_b comp[r, b] weight[b]`.

    Args:
        aggr: `mean` over the neighbours of each relation, or `sum` (or `add`).
        is_sorted: has no effect.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: None = None,
        aggr: str = "mean",
        root_weight: bool = True,
        is_sorted: bool = False,
        bias: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, {"num_blocks": num_blocks, **keywords}, num_blocks=(None,))
        for name, width in (("in_channels", in_channels), ("out_channels", out_channels)):
            check_width(self, name, width)
        check_width(self, "num_relations", num_relations, 1)
        aggr = "sum" if aggr == "add" else aggr
        if aggr not in ("mean", "sum"):
            raise InputError(f"{type(self).__name__}: aggr must be mean or sum", value=aggr)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_relations, self.num_bases, self.aggr = num_relations, num_bases, aggr
        count = num_relations if num_bases is None else num_bases
        self.weight = torch.nn.Parameter(torch.empty(count, in_channels, out_channels))
        self.comp: torch.nn.Parameter | None = None
        if num_bases is not None:
            self.comp = torch.nn.Parameter(torch.empty(num_relations, num_bases))
        self.root: torch.nn.Parameter | None = None
        if root_weight:
            self.root = torch.nn.Parameter(torch.empty(in_channels, out_channels))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.weight, self.comp, self.root):
            if weight is not None:
                glorot(weight)
        zero(self.bias)

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, in_channels]`, which is made dense if it is sparse, to `[n, out_channels]`."""
        check_rows(
            graph, x, who="RGCNConv", width=self.in_channels, constant=True, like=self.weight
        )
        x_NF = dense_rows(x, graph.node_ids.device)
        if graph.num_relations > self.num_relations:
            raise InputError(
                f"the graph has {graph.num_relations} relations, the layer {self.num_relations}"
            )
        y_NF = relational_sum(graph, x_NF, self._weights(), mean=self.aggr == "mean")
        if self.root is not None:
            y_NF += times(x_NF, self.root)
        return y_NF if self.bias is None else y_NF.add_(self.bias)

    def _weights(self) -> Tensor:
        """Return one matrix per relation, in full precision: `[R, F, G]`."""
        if self.comp is None:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.einsum("rb,bio->rio", self.comp, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, num_relations={self.num_relations}"


class RGATConv(torch.nn.Module):
    """Relational attention, as PyTorch Geometric's `RGATConv`; every edge must have a relation.

    Arguments and parameters are the same.

    Args:
        num_bases: number of bases of which the relations' matrices are sums.
        mod: how the output depends on a node's number of neighbours: `additive`, `scaled`,
            `f-additive`, `f-scaled` or None; the parameters of all of them exist in any case.
        attention_mechanism: `across-relation`, a softmax over all edges into a node, or
            `within-relation`, one per relation, which exchanges the boundary rows once for each.
        attention_mode: `additive-self-attention` or `multiplicative-self-attention`: whether
            scores are sums or products.
        heads, dim: number of attention heads, and of scores per head; with `concat` heads are
            concatenated, otherwise averaged.
        dropout: probability of dropping an attention weight while training.
        edge_dim: width of the graph's edge features, if the scores use them.
        layer: number that distinguishes the dropout masks of one model; by default drawn from
            torch's generator.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: None = None,
        mod: str | None = None,
        attention_mechanism: str = "across-relation",
        attention_mode: str = "additive-self-attention",
        heads: int = 1,
        dim: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        layer: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(
            self,
            {
                **keywords,
                "attention_mechanism": attention_mechanism,
                "attention_mode": attention_mode,
                "num_blocks": num_blocks,
                "mod": mod,
            },
            num_blocks=(None,),
            mod=_MODS,
            attention_mechanism=_MECHANISMS,
            attention_mode=_MODES,
            aggr=("add", "sum"),
        )
        widths = {"in_channels": in_channels, "out_channels": out_channels}
        counts = {"num_relations": num_relations, "heads": heads, "dim": dim}
        for name, width in (widths | counts).items():
            check_width(self, name, width, int(name in counts))
        check_probability(self, dropout)
        self.multiplies = attention_mode == _MODES[1]
        if dim > 1 and not self.multiplies:
            raise InputError(f"RGATConv: dim needs attention_mode={_MODES[1]}", value=dim)
        if dropout and mod is not None:
            raise InputError("RGATConv: dropout needs mod=None", value=mod)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_relations, self.num_bases, self.mod = num_relations, num_bases, mod
        self.within = attention_mechanism == _MECHANISMS[1]
        self.heads, self.dim, self.concat = heads, dim, concat
        self.negative_slope, self.dropout, self.edge_dim = negative_slope, dropout, edge_dim
        self._make_parameters(bias)
        self.layer = layer_number(layer)
        self.reset_parameters()

    def _make_parameters(self, bias: bool) -> None:
        width = self.heads * self.out_channels
        self.q = _empty(width, self.heads * self.dim)
        self.k = _empty(width, self.heads * self.dim)
        out = (self.heads if self.concat else 1) * self.dim * self.out_channels
        self.bias = _empty(out) if bias else None
        edge_dim = self.edge_dim
        self.lin_edge = None if edge_dim is None else glorot_linear(edge_dim, width)
        self.e = None if edge_dim is None else _empty(width, self.heads * self.dim)
        if self.num_bases is None:
            self.weight = _empty(self.num_relations, self.in_channels, width)
        else:
            self.att = _empty(self.num_relations, self.num_bases)
            self.basis = _empty(self.num_bases, self.in_channels, width)
        self.w = _empty(self.out_channels)
        self.l1, self.b1 = _empty(1, self.out_channels), _empty(1, self.out_channels)
        self.l2 = _empty(self.out_channels, self.out_channels)
        self.b2 = _empty(1, self.out_channels)

    def reset_parameters(self) -> None:
        drawn = [self.weight] if self.num_bases is None else [self.basis, self.att]
        for weight in (*drawn, self.q, self.k, self.e):
            if weight is not None:
                glorot(weight)
        if self.lin_edge is not None:
            self.lin_edge.reset_parameters()
        for bias in (self.bias, self.b1, self.b2):
            zero(bias)
        torch.nn.init.ones_(self.w)
        torch.nn.init.ones_(self.l1)
        torch.nn.init.constant_(self.l2, 1 / max(self.out_channels, 1))

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, F]`, which is made dense if it is sparse, to `[n, H * dim * C]`."""
        check_rows(graph, x, who="RGATConv", width=self.in_channels, constant=True, like=self.q)
        check_edges(graph, self.edge_dim, who="RGATConv")
        if not 0 < graph.num_relations <= self.num_relations:
            raise InputError(
                f"the graph has {graph.num_relations} relations, the layer {self.num_relations}"
            )
        x_NF = dense_rows(x, graph.node_ids.device)
        with torch.autocast(x_NF.device.type, enabled=False):
            weights = self._weights()
        only = range(graph.num_relations) if self.within else [None]
        softmax_NK, sum_NK = self._attend(graph, x_NF, weights, only[0])
        for relation in only[1:]:
            more = self._attend(graph, x_NF, weights, relation)
            softmax_NK, sum_NK = softmax_NK + more[0], sum_NK + more[1]
        return self._output(graph, softmax_NK, sum_NK)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return relations' matrices of rows, `[R, F, K]`, and of queries, `[R, F, H * dim]`."""
        if self.num_bases is None:
            return self.weight, self.weight @ self.q
        weight_RFK = torch.einsum("rb,bfk->rfk", self.att, self.basis)
        return weight_RFK, weight_RFK @ self.q

    def _attend(
        self,
        graph: PartitionedGraph,
        x_NF: Tensor,
        weights: tuple[Tensor, Tensor],
        only: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums weighted by the softmax, and plain sums if `mod` needs them, else 0."""
        adds = self.mod in ("additive", "f-additive")
        found_NK = reduced_messages(
            self,
            graph,
            x_NF,
            partial(self._message, weights, only),
            ("softmax", "sum") if adds else "softmax",
            dropout=self.dropout if self.training else 0.0,
            heads=self.heads * self.dim,
        )
        if not adds:
            return found_NK, found_NK.new_zeros(1)
        return found_NK.chunk(2, dim=1)  # type: ignore[return-value]

    def _message(
        self,
        weights: tuple[Tensor, Tensor],
        only: int | None,
        x_src: Tensor,
        x_dst: Tensor,
        edge: EdgePiece,
    ) -> tuple[Tensor, Tensor]:
        if edge.relation is None:
            raise InputError("RGATConv needs relations; convert the graph from triples")
        kinds, order = edge.relation.sort(stable=True)
        numbers = torch.arange(self.num_relations, device=kinds.device, dtype=kinds.dtype)
        ends = torch.searchsorted(kinds, numbers, right=True)
        counts, back = ends.diff(prepend=ends.new_zeros(1)).tolist(), order.argsort()
        z, query = (
            _by_relation(rows[order], weight, counts)[back]
            for rows, weight in zip((x_src, x_dst), weights, strict=True)
        )
        key, own = times(z, self.k), None
        if self.lin_edge is not None and self.e is not None and edge.features is not None:
            own = times(self.lin_edge(edge.features.to(z.dtype)), self.e)
        if self.multiplies:
            score = query * key if own is None else query * key * own
        else:
            score = query + key if own is None else query + key + own
            score = functional.leaky_relu(score, self.negative_slope)
        shape = (len(z), self.heads, self.dim, self.out_channels)
        value = z.view(len(z), self.heads, 1, -1).expand(shape)
        if edge.kept is not None:
            value = value * edge.kept.view(*shape[:3], 1)
        if only is not None:
            other = edge.relation != only
            score = score.masked_fill(other[:, None], -torch.inf)
            value = value.masked_fill(other[:, None, None, None], 0)
        return value, score.view(shape[:3])

    def _output(self, graph: PartitionedGraph, softmax_NK: Tensor, sum_NK: Tensor) -> Tensor:
        shape = (-1, self.heads, self.dim, self.out_channels)
        out = softmax_NK.view(shape)
        degree_N1 = in_degrees(graph)[:, None].to(out.dtype)
        if self.mod == "additive":
            out = out + self.w * sum_NK.view(shape)
        elif self.mod == "f-additive":
            out = out + sum_NK.view(shape)
        elif self.mod == "scaled":
            scale_NC = torch.relu(times(degree_N1, self.l1) + self.b1)
            scale_NC = times(scale_NC, self.l2) + self.b2
            out = out * scale_NC[:, None, None, :]
        elif self.mod == "f-scaled":
            out = out * degree_N1[:, :, None, None]
        out = out.flatten(1) if self.concat else out.mean(dim=1).flatten(1)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, num_relations={self.num_relations}"
        return f"{sizes}, heads={self.heads}"


def _empty(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(*shape))


def _by_relation(rows: Tensor, weight_RFK: Tensor, counts: list[int]) -> Tensor:
    """Return each row times its relation's matrix; rows are in the order of their relations."""
    pieces = zip(rows.split(counts), weight_RFK, strict=True)
    return torch.cat([times(piece, weight_FK) for piece, weight_FK in pieces])
