"""Neighbour sums and fused attention beside torch, PyTorch Geometric and DGL where installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hpcgnn.bench.bandwidth import kernel_rows
from hpcgnn.bench.timing import Row, compare
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.graph import Block, EdgeBlocks, PartitionedGraph
from hpcgnn.nn import GATConv
from hpcgnn.sar.sums import neighbour_sum

OURS = "hpcgnn"


@dataclass(frozen=True)
class Case:
    """Sizes of the graph and of the features."""

    nodes: int
    edges: int
    width: int
    heads: int
    channels: int
    seed: int = 0


def power_law_graph(case: Case, comm: Communicator, device: torch.device) -> PartitionedGraph:
    """A symmetric graph whose degrees follow a power law (exponent about 2.4), in one part."""
    generator = torch.Generator().manual_seed(case.seed)
    weight = (torch.arange(case.nodes) + 10.0) ** -0.7
    chance = torch.cumsum(weight / weight.sum(), 0)
    order = torch.randperm(case.nodes, generator=generator)
    ends = torch.searchsorted(chance, torch.rand(2, case.edges // 2, generator=generator))
    ends = order[ends.clamp(max=case.nodes - 1)]
    source, target = torch.cat([ends[0], ends[1]]), torch.cat([ends[1], ends[0]])
    key = torch.sort(target * case.nodes + source).values
    target, source = key // case.nodes, key % case.nodes
    pointer = torch.zeros(case.nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(target, minlength=case.nodes), 0, out=pointer[1:])
    block = Block(
        peer=0, num_columns=case.nodes, rows=None, begin=pointer[:-1], end=pointer[1:],
        columns=source.to(torch.int32),
    )  # fmt: skip
    edges = EdgeBlocks(0, [block], [torch.empty(0, dtype=torch.int32)])
    ids = torch.arange(case.nodes)
    graph = PartitionedGraph(
        num_nodes=case.nodes, num_edges=len(source), num_classes=0, node_ids=ids,
        original_ids=ids, in_edges=edges, out_edges=edges, ring=Ring(comm),
    )  # fmt: skip
    return graph.to(device)


def run(case: Case, comm: Communicator, device: torch.device, repeat: int) -> list[Row]:
    """All operations of all implementations; one rank."""
    graph = power_law_graph(case, comm, device)
    peers = {name: _found(name) for name in ("torch_geometric", "dgl")}
    block, sizes = graph.in_edges.blocks[0], (case.width, case.heads, case.channels)
    types = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    return [
        *_sums(case, graph, peers, repeat),
        *_attention(case, graph, peers, repeat),
        *(row for dtype in types for row in kernel_rows(block, *sizes, dtype, repeat)),
    ]


def _found(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception:  # a peer that doesn't import here is left out of the table
        return None


def _block(graph: PartitionedGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointer, sources and targets: int64."""
    block = graph.in_edges.blocks[0]
    pointer = torch.cat([block.begin, block.end[-1:]])
    rows = torch.arange(block.num_rows, device=pointer.device)
    return pointer, block.columns.long(), torch.repeat_interleave(rows, block.end - block.begin)


def _sums(
    case: Case, graph: PartitionedGraph, peers: dict[str, ModuleType | None], repeat: int
) -> list[Row]:
    pointer, source, target = _block(graph)
    x_NF = torch.randn(case.nodes, case.width, device=pointer.device)
    grad_NF = torch.randn_like(x_NF)
    ones = torch.ones(len(source), device=pointer.device)
    matrix = torch.sparse_csr_tensor(pointer, source, ones, (case.nodes, case.nodes))
    forwards: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda x: neighbour_sum(graph, x),
        "torch.sparse": lambda x: torch.sparse.mm(matrix, x),
    }
    dgl: Any = peers["dgl"]
    if dgl is not None:
        other = dgl.graph((source, target), num_nodes=case.nodes).formats(["csc", "csr"])
        forwards["DGL"] = lambda x: dgl.ops.copy_u_sum(other, x)
    name = f"sum of neighbours, width {case.width}"
    return _both(name, forwards, x_NF, grad_NF, repeat)


def _attention(
    case: Case, graph: PartitionedGraph, peers: dict[str, ModuleType | None], repeat: int
) -> list[Row]:
    _, source, target = _block(graph)
    width, device = case.heads * case.channels, source.device
    x_NF = torch.randn(case.nodes, width, device=device)
    grad_NF = torch.randn_like(x_NF)
    ours = GATConv(width, case.channels, case.heads, add_self_loops=False).to(device)
    forwards: dict[str, Callable[[Tensor], Tensor]] = {OURS: lambda x: ours(graph, x)}
    pyg: Any = peers["torch_geometric"]
    if pyg is not None:
        theirs = importlib.import_module("torch_geometric.nn").GATConv(
            width, case.channels, case.heads, add_self_loops=False
        )
        theirs.load_state_dict(ours.state_dict())
        theirs, index = theirs.to(device), torch.stack([source, target])
        forwards["PyG GATConv"] = lambda x: theirs(x, index)
    dgl: Any = peers["dgl"]
    if dgl is not None:
        other = dgl.graph((source, target), num_nodes=case.nodes).formats(["csc", "csr", "coo"])
        layer = importlib.import_module("dgl.nn").GATConv(
            width, case.channels, case.heads, allow_zero_in_degree=True
        )
        layer = layer.to(device)
        forwards["DGL GATConv"] = lambda x: layer(other, x).flatten(1)
    name = f"attention, {case.heads} heads x {case.channels}"
    return _both(name, forwards, x_NF, grad_NF, repeat)


def _both(
    name: str,
    forwards: dict[str, Callable[[Tensor], Tensor]],
    x_NF: Tensor,
    grad_NF: Tensor,
    repeat: int,
) -> list[Row]:
    """Forward alone, then forward and backward."""

    def alone(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return run(x_NF)

        return call

    def there_and_back(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def call() -> object:
            return run(x_NF.detach().requires_grad_()).backward(grad_NF)

        return call

    forward = {key: alone(run) for key, run in forwards.items()}
    both = {key: there_and_back(run) for key, run in forwards.items()}
    return [
        *compare(f"{name}, forward", forward, repeat, OURS),
        *compare(f"{name}, forward + backward", both, repeat, OURS),
    ]
