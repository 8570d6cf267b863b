"""Principal neighbourhood aggregation (Corso et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_width
from hpcgnn.nn.linear import Linear, NodeFeatures, linear, times
from hpcgnn.nn.message_passing import aggr_names, reduced_messages
from hpcgnn.sar.aggregation import in_degrees
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.products import dense_rows

_AGGREGATORS = ("sum", "mean", "min", "max", "var", "std")
_SCALERS = ("identity", "amplification", "attenuation", "linear", "inverse_linear")
_ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": torch.nn.ReLU,
    "elu": torch.nn.ELU,
    "gelu": torch.nn.GELU,
    "silu": torch.nn.SiLU,
    "tanh": torch.nn.Tanh,
    "leaky_relu": torch.nn.LeakyReLU,
}


class PNAConv(torch.nn.Module):
    """Principal neighbourhood aggregation, as PyTorch Geometric's `PNAConv`.

    Arguments, parameters and initialisation are the same. The first map of `pre_nns` is a sum of
    linear maps of source, destination and edge: the mapped rows of sources are sent, `towers * F`
    numbers per boundary node.

    Args:
        aggregators: some of `sum`, `mean`, `min`, `max`, `var` and `std`.
        scalers: some of `identity`, `amplification`, `attenuation`, `linear` and `inverse_linear`.
        deg: `deg[k]` nodes have k in-edges; `get_degree_histogram(graph)` counts them.
        edge_dim: width of the graph's edge features, if messages use them.
        act: activation between maps, if there are several: its name, or a function that makes a
            module.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        aggregators: Sequence[str],
        scalers: Sequence[str],
        deg: Tensor,
        edge_dim: int | None = None,
        towers: int = 1,
        pre_layers: int = 1,
        post_layers: int = 1,
        divide_input: bool = False,
        act: str | Callable[..., torch.nn.Module] = "relu",
        act_kwargs: dict[str, object] | None = None,
        train_norm: bool = False,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, keywords)
        counts = {"towers": towers, "pre_layers": pre_layers, "post_layers": post_layers}
        for name, count in counts.items():
            check_width(self, name, count, 1)
        _check_names("aggregators", aggr_names(aggregators), _AGGREGATORS)
        _check_names("scalers", tuple(scalers), _SCALERS)
        if out_channels % towers or (divide_input and in_channels % towers):
            raise InputError("PNAConv: widths must be multiples of towers", value=towers)
        self.in_channels, self.out_channels, self.edge_dim = in_channels, out_channels, edge_dim
        self.towers, self.divide_input = towers, divide_input
        self.aggregators, self.scalers = aggr_names(aggregators), tuple(scalers)
        self.inner = in_channels // towers if divide_input else in_channels
        self.aggr_module = DegreeScales(deg, train_norm)
        self.edge_encoder = None if edge_dim is None else Linear(edge_dim, self.inner)

        def network(inputs: int, outputs: int, layers: int) -> torch.nn.Sequential:
            modules: list[torch.nn.Module] = [Linear(inputs, outputs)]
            for _ in range(layers - 1):
                modules += [_activation(act, act_kwargs or {}), Linear(outputs, outputs)]
            return torch.nn.Sequential(*modules)

        self.pre_nns, self.post_nns = torch.nn.ModuleList(), torch.nn.ModuleList()
        ends = (2 if edge_dim is None else 3) * self.inner
        gathered = (len(self.aggregators) * len(self.scalers) + 1) * self.inner
        for _ in range(towers):
            self.pre_nns.append(network(ends, self.inner, pre_layers))
            self.post_nns.append(network(gathered, out_channels // towers, post_layers))
        self.lin = Linear(out_channels, out_channels)
        self.layer = 0

    def reset_parameters(self) -> None:
        self.aggr_module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Linear):
                module.reset_parameters()

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output."""
        return self.lin.bias

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, F]`, which is made dense if it is sparse, to `[n, out_channels]`; collective."""
        like = self.lin.weight
        check_rows(graph, x, who="PNAConv", width=self.in_channels, constant=True, like=like)
        check_edges(graph, self.edge_dim, who="PNAConv")
        x_NF = dense_rows(x, graph.node_ids.device)
        towers = x_NF.split(self.inner, dim=1) if self.divide_input else [x_NF] * self.towers
        sources, targets, edge = self._first_maps(towers)
        kinds = tuple("var" if name == "std" else name for name in self.aggregators)
        asked = tuple(dict.fromkeys(kinds))

        def message(x_src: Tensor, x_dst: Tensor, piece: EdgePiece) -> Tensor:
            h = x_src + x_dst
            if edge is not None and piece.features is not None:
                h = h + times(piece.features.to(h.dtype), edge)
            return self._rest(h)

        reduced = reduced_messages(self, graph, sources, message, asked, targets=targets)
        found = dict(zip(asked, reduced.chunk(len(asked), dim=1), strict=True))
        gathered = [
            _deviation(found[kind]) if name == "std" else found[kind]
            for name, kind in zip(self.aggregators, kinds, strict=True)
        ]
        scales = [self.aggr_module(name, in_degrees(graph)) for name in self.scalers]
        outs = []
        for tower, (own, network) in enumerate(zip(towers, self.post_nns, strict=True)):
            columns = slice(tower * self.inner, (tower + 1) * self.inner)
            rows = torch.cat([part[:, columns] for part in gathered], dim=1)
            scaled = [rows * scale.to(rows.dtype) for scale in scales]
            outs.append(network(torch.cat([own.to(rows.dtype), *scaled], dim=1)))
        result: Tensor = self.lin(torch.cat(outs, dim=1))
        return result

    def _first_maps(self, towers: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return all towers' first maps: mapped sources, mapped destinations, the map of edges.

        Destinations include the bias.
        """
        width, sources, targets, edges = self.inner, [], [], []
        for rows, network in zip(towers, self.pre_nns, strict=True):
            first: Linear = network[0]  # type: ignore[index]
            targets.append(linear(rows, first.weight[:, :width], first.bias))
            sources.append(linear(rows, first.weight[:, width : 2 * width]))
            if self.edge_encoder is not None and self.edge_encoder.bias is not None:
                part = first.weight[:, 2 * width :]
                with torch.autocast(rows.device.type, enabled=False):  # as messages are computed
                    edges.append(self.edge_encoder.weight.t() @ part.t())
                    targets[-1] = targets[-1] + part @ self.edge_encoder.bias
        edge = torch.cat(edges, dim=1) if edges else None
        return torch.cat(sources, dim=1), torch.cat(targets, dim=1), edge

    def _rest(self, h: Tensor) -> Tensor:
        """Apply the modules after the first map of each tower."""
        parts = h.split(self.inner, dim=1)
        networks = [network[1:] for network in self.pre_nns]  # type: ignore[index]
        return torch.cat([n(part) for n, part in zip(networks, parts, strict=True)], dim=1)

    @staticmethod
    def get_degree_histogram(graph: PartitionedGraph) -> Tensor:
        """Return the number of nodes with k in-edges at index k: int64, on the host; collective."""
        degrees = in_degrees(graph).long().cpu()
        most = int(degrees.max()) if len(degrees) else 0
        length = int(graph.comm.allreduce(most, "max", where="degrees")) + 1
        counts = torch.bincount(degrees, minlength=length)
        return graph.comm.allreduce(counts, where="degrees")

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, towers={self.towers}"


class DegreeScales(torch.nn.Module):
    """Factors by in-degree, relative to averages over the nodes that `deg` counts.

    Args:
        deg: `deg[k]` nodes have k in-edges.
        train_norm: whether the averages are learned.
    """

    avg_deg_lin: Tensor
    avg_deg_log: Tensor

    def __init__(self, deg: Tensor, train_norm: bool) -> None:
        super().__init__()
        if not isinstance(deg, Tensor) or deg.dim() != 1 or not float(deg.sum()) > 0:
            raise InputError(
                "PNAConv: deg must give the numbers of nodes with 0, 1, 2 ... in-edges"
            )
        share = deg.detach().double().cpu() / deg.sum().item()
        degrees = torch.arange(len(share), dtype=torch.float64, device=share.device)
        self.initial = float((share * degrees).sum()), float((share * (degrees + 1).log()).sum())
        for name, value in zip(("avg_deg_lin", "avg_deg_log"), self.initial, strict=True):
            average = torch.full((1,), value)
            if train_norm:
                self.register_parameter(name, torch.nn.Parameter(average))
            else:
                self.register_buffer(name, average)

    def reset_parameters(self) -> None:
        self.avg_deg_lin.data.fill_(self.initial[0])
        self.avg_deg_log.data.fill_(self.initial[1])

    def forward(self, scaler: str, degrees: Tensor) -> Tensor:
        """Return the factors of nodes with these in-degrees: `[n, 1]`."""
        degrees = degrees[:, None].to(self.avg_deg_lin.dtype)
        if scaler == "amplification":
            return torch.log(degrees + 1) / self.avg_deg_log
        if scaler == "attenuation":
            return self.avg_deg_log / torch.log(degrees.clamp(min=1) + 1)
        if scaler == "linear":
            return degrees / self.avg_deg_lin
        if scaler == "inverse_linear":
            return self.avg_deg_lin / degrees.clamp(min=1)
        return torch.ones_like(degrees)


def _deviation(var: Tensor) -> Tensor:
    """Return the deviation as in PyTorch Geometric: 0, without gradient, for var <= 1e-5."""
    root = var.clamp(min=1e-5).sqrt()
    return root.masked_fill(root <= math.sqrt(1e-5), 0.0)


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or any(name not in known for name in given):
        raise InputError(f"PNAConv: {what} must be some of {', '.join(known)}", value=list(given))


def _activation(
    act: str | Callable[..., torch.nn.Module], keywords: dict[str, object]
) -> torch.nn.Module:
    if isinstance(act, str) and act not in _ACTIVATIONS:
        raise InputError(f"PNAConv: act must be one of {', '.join(_ACTIVATIONS)}", value=act)
    make: Callable[..., torch.nn.Module] = _ACTIVATIONS[act] if isinstance(act, str) else act
    return make(**keywords)
