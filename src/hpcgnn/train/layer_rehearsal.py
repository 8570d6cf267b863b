"""The layers of a user's model on a few nodes, so that their kernels are loaded at the start.

The user's code is not run: on other nodes than its own it might read rows that do not exist, which
on a GPU ends the process, or never come to an end. Each layer of `hpcgnn.nn` is called by itself
instead, with rows as wide as it takes, on a copy that has gradients, buffers and hooks of its own.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from hpcgnn import nn
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mirror import MirrorTransport
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.staged import CudaCopier, pinned_copy
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.features import HostRows, SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import Content, content_of
from hpcgnn.nn.gin import split_first
from hpcgnn.nn.linear import NodeFeatures
from hpcgnn.train.optimisation import arithmetic
from hpcgnn.train.rehearsal import in_a_mirror
from hpcgnn.train.sample import Kinds, sample

_OF_ANY_WIDTH = (nn.APPNP, nn.Dropout)
_LAYERS = (
    nn.GATConv,
    nn.GATv2Conv,
    nn.GCNConv,
    nn.GENConv,
    nn.GINConv,
    nn.PNAConv,
    nn.RGATConv,
    nn.RGCNConv,
    nn.SAGEConv,
    nn.SGConv,
    nn.TransformerConv,
    nn.AdaptiveDepth,
    nn.Linear,
    *_OF_ANY_WIDTH,
)
_KNOWN = ("hpcgnn.nn.", "torch.nn.modules.")
_AS_IN_PYG = "hpcgnn.nn.pyg"
_HOOKS = [name for name in vars(torch.nn.Module()) if name.endswith("_hooks")]


def rehearse_layers(
    model: torch.nn.Module,
    graph: PartitionedGraph,
    precision: str,
    *,
    trains: bool = True,
) -> None:
    """Compile and load the kernels of the model's layers, if the graph is on a GPU; collective.

    Left out are layers that the user has derived from ours, messages in plain torch, and functions
    that the model calls: their kernels are loaded at their first use.

    Args:
        trains: whether the model will be trained, not only applied.

    Raises:
        KernelError: a kernel can't be compiled or loaded; on all ranks.
    """
    if graph.node_ids.device.type != "cuda":
        return
    content = content_of(graph)
    with in_a_mirror(graph.comm) as comm:
        run(model, few_nodes(graph, content, comm), precision, trains=trains)


def few_nodes(graph: PartitionedGraph, content: Content, comm: Communicator) -> PartitionedGraph:
    """Return a small graph with data of the same kinds, on the same device and as it is run."""
    device, features = graph.node_ids.device, graph.features
    ring = Ring(
        comm,
        halo_buffer=graph.ring.halo_buffer,
        prefetch=graph.ring.prefetch,
        transport=MirrorTransport(device),
    )
    kind = "none" if features is None else "dense"
    kinds = Kinds(
        features="sparse" if isinstance(features, SparseRows) else kind,
        width=0 if features is None else features.shape[1],
        outputs=graph.num_classes,
        weights=content.weights,
        edge_width=content.edge_width,
        relations=graph.num_relations,
    )
    few, how = sample(kinds, ring), graph.execution
    if isinstance(features, HostRows) and isinstance(few.features, Tensor):
        few = replace(few, features=HostRows(pinned_copy(few.features), CudaCopier(device)))
    execution = Execution(
        ring,
        mode=how.mode,
        seed=how.seed,
        fewest_rows=how.fewest_rows,
        narrow_first=how.narrow_first,
        cache_first=how.cache_first,
    )
    return replace(few.to(device), execution=execution)


def run(model: torch.nn.Module, graph: PartitionedGraph, precision: str, *, trains: bool) -> None:
    """Call each layer of the model on this graph, forward and, if it is trained, backward."""
    if torch_module._has_any_global_hook():
        return  # a user's, which the modules within layers would call
    device, dtypes = graph.node_ids.device, [torch.float32]
    dtypes += [torch.bfloat16] * (precision == "bf16" and device.type == "cuda")
    widths = {max(graph.num_classes, 1)}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        graph.set_epoch(1)
        layers = sorted(_layers(model), key=lambda layer: isinstance(layer, _OF_ANY_WIDTH))
        for layer in layers:
            given = _width(layer)
            if isinstance(layer, nn.Linear):
                continue
            for width in sorted(widths) if given is None else [given]:
                for dtype in dtypes:
                    x_NF = torch.randn(graph.num_local_nodes, width, device=device, dtype=dtype)
                    widths |= {width, _pass(layer, graph, x_NF, precision, trains)}
        for layer in layers:  # last, since not every layer takes features that are not dense
            x = graph.features
            linear = isinstance(layer, nn.Linear) and isinstance(x, Tensor)
            if x is not None and _width(layer) == x.shape[1] and not linear:
                _pass(layer, graph, x, precision, trains)


def _pass(
    layer: torch.nn.Module,
    graph: PartitionedGraph,
    x: NodeFeatures,
    precision: str,
    trains: bool,
) -> int:
    """Call the layer as in training and in evaluation; return the width of its output."""

    def output(x: NodeFeatures) -> Tensor:
        with arithmetic(precision, graph.node_ids.device):
            if isinstance(layer, nn.Linear):
                return nn.Linear.forward(layer, x)
            kind = type(layer)
            kind = kind.__mro__[1] if kind.__module__ == _AS_IN_PYG else kind
            result: Tensor = kind.forward(layer, graph, x)
            return result

    if trains:
        layer.train()
        with torch.enable_grad():
            learned = isinstance(x, Tensor) and x is not graph.features
            y = output(x.requires_grad_().clone() if learned else x)  # type: ignore[union-attr]
            if y.requires_grad:
                y.float().square().mean().backward()
    layer.eval()
    with torch.no_grad():
        return output(x.detach() if isinstance(x, Tensor) else x).shape[1]


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield a copy of each of the model's layers, and of those that are alike only the first."""
    seen: set[tuple[object, ...]] = set()
    for layer in model.modules():
        if not isinstance(layer, _LAYERS):
            continue
        known: dict[int, torch.nn.Module] = {}
        if isinstance(layer, nn.GINConv):  # it sums rows, and leaves the rest to a user's module
            first, _ = split_first(layer.nn)
            known[id(layer.nn)] = torch.nn.Identity() if first is None else first
        if all(type(part).__module__.startswith(_KNOWN) for part in _parts(layer, known)):
            made = _copied(layer, {place: _copied(part, {}) for place, part in known.items()})
            sizes = [(name, p.shape) for name, p in made.named_parameters()]
            simple = {n: v for n, v in vars(made).items() if isinstance(v, int | float | str)}
            simple.pop("layer", None)
            kind = type(made), *sizes, *sorted(simple.items()), _width(layer)
            if kind not in seen:
                seen.add(kind)
                yield made


def _parts(module: torch.nn.Module, known: dict[int, torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """Yield the module and those within it, with those of `known` in place of others."""
    module = known.get(id(module), module)
    yield module
    for child in module.children():
        yield from _parts(child, known)


def _copied(module: torch.nn.Module, known: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """Return a copy that shares nothing that changes: parameters share their values alone.

    `known`: copies of some modules within it, to which the others are added.
    """
    if id(module) not in known:
        known[id(module)] = made = copy.copy(module)
        for name in _HOOKS:
            setattr(made, name, OrderedDict())
        made._parameters = {
            name: None if p is None else torch.nn.Parameter(p.detach(), p.requires_grad)
            for name, p in module._parameters.items()
        }
        made._buffers = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
        made._modules = {
            name: None if child is None else _copied(child, known)
            for name, child in module._modules.items()
        }
    return known[id(module)]


def _width(layer: torch.nn.Module) -> int | None:
    """Return the width of the rows that the layer takes; None if it takes any."""
    if isinstance(layer, nn.AdaptiveDepth):
        return layer.gate.in_channels
    parts = layer.nn.modules() if isinstance(layer, nn.GINConv) else [layer]
    for part in parts:
        for name in ("in_channels", "in_features"):
            if isinstance(width := getattr(part, name, None), int):
                return width
    return None
