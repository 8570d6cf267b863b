"""Graph isomorphism network (Xu et al. 2019), and with edge features (Hu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords
from hpcgnn.nn.linear import Linear, NodeFeatures, linear
from hpcgnn.nn.message_passing import reduced_messages
from hpcgnn.nn.sage import neighbours
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.products import dense_rows


class GINConv(torch.nn.Module):
    """The isomorphism layer `x'_i = nn((1 + eps) x_i + sum_j x_j)`.

    Arguments are those of PyTorch Geometric's `GINConv`. `aggr` takes the neighbours'
    `mean`, `max` or `min` in place of their sum (`add`).

    Sparse features are multiplied before they are summed if `nn` begins with a linear map, and are
    made dense if it doesn't.
    """

    hops = 1

    def __init__(
        self,
        nn: torch.nn.Module,
        eps: float = 0.0,
        train_eps: bool = False,
        **keywords: object,
    ) -> None:
        super().__init__()
        aggr = keywords.pop("aggr", "add")
        check_keywords(self, keywords)
        if aggr not in ("add", "sum", "mean", "max", "min"):
            raise InputError(
                f"{type(self).__name__}: aggr must be add, mean, max or min", value=aggr
            )
        self.aggr = "sum" if aggr == "add" else str(aggr)
        self.nn, self.initial_eps = nn, float(eps)
        self.eps: Tensor
        if train_eps:
            self.eps = torch.nn.Parameter(torch.tensor([self.initial_eps]))
        else:
            self.register_buffer("eps", torch.tensor([self.initial_eps]))

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output, if `nn` ends with a linear map."""
        last: torch.nn.Module = self.nn
        while isinstance(last, torch.nn.Sequential) and len(last):
            last = last[-1]
        return last.bias if type(last) in (Linear, torch.nn.Linear) else None  # type: ignore[return-value]

    def reset_parameters(self) -> None:
        for module in self.nn.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        self.eps.data.fill_(self.initial_eps)

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        check_rows(graph, x, who=type(self).__name__, constant=True)
        result: Tensor
        if isinstance(x, Tensor):
            result = self.nn(self._sum(graph, x))
            return result
        first, rest = split_first(self.nn)
        if first is None or self.aggr in ("max", "min"):
            result = self.nn(self._sum(graph, dense_rows(x, graph.node_ids.device)))
            return result
        y_NF = self._sum(graph, linear(x, first.weight))
        result = rest(y_NF if first.bias is None else y_NF + first.bias)
        return result

    def _sum(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        return neighbours(graph, x_NF, self.aggr) + (1 + self.eps) * x_NF


def split_first(module: torch.nn.Module) -> tuple[Linear | torch.nn.Linear | None, torch.nn.Module]:
    """Return the linear map that `module` begins with, if it does, and the modules after it."""
    if isinstance(module, torch.nn.Sequential) and len(module):
        first, inner = split_first(module[0])
        return first, torch.nn.Sequential(inner, *list(module)[1:])
    if type(module) in (Linear, torch.nn.Linear):
        return module, torch.nn.Identity()  # type: ignore[return-value]
    return None, module


class GINEConv(GINConv):
    """The layer with edge features `x'_i = nn((1 + eps) x_i + sum_j relu(x_j + e_ji))`.

    Like PyTorch Geometric's `GINEConv`.

    Args:
        nn: must begin with a linear map, which gives the width of node rows, if `edge_dim` is set.
        edge_dim: width of the graph's edge features, which a linear map brings to the width of
            node rows; None: they have that width already.
        aggr: `add` (or `sum`), `mean`, `max` or `min`.
    """

    hops = 1

    def __init__(
        self,
        nn: torch.nn.Module,
        eps: float = 0.0,
        train_eps: bool = False,
        edge_dim: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__(nn, eps, train_eps, **keywords)
        self.edge_dim = edge_dim
        self.lin = None if edge_dim is None else Linear(edge_dim, _width(nn))
        self.layer = 0

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.lin is not None:
            self.lin.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, F]`, which is made dense if it is sparse, to the output of `nn`."""
        check_rows(graph, x, who=type(self).__name__, constant=True)
        wanted = x.shape[1] if self.edge_dim is None else self.edge_dim
        check_edges(graph, wanted, who=type(self).__name__)
        x_NF = dense_rows(x, graph.node_ids.device)
        sum_NF = reduced_messages(self, graph, x_NF, self._message, self.aggr)
        result: Tensor = self.nn(sum_NF + (1 + self.eps) * x_NF)
        return result

    def _message(self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece) -> Tensor:
        features = x_src.new_zeros(1) if edge.features is None else edge.features.to(x_src.dtype)
        return torch.relu(x_src + (features if self.lin is None else self.lin(features)))


def _width(module: torch.nn.Module) -> int:
    """Return the input width of a network, according to its first module."""
    first = module[0] if isinstance(module, torch.nn.Sequential) and len(module) else module
    for name in ("in_features", "in_channels"):
        if isinstance(getattr(first, name, None), int):
            return int(getattr(first, name))
    raise InputError("GINEConv: edge_dim needs a network that begins with a linear map")
