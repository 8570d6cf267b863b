"""The same operations by others: torch, PyTorch Geometric and DGL."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from hpcgnn.bench.case import Case, Edges, Operations, power_law_edges, there_and_back


def torch_sparse(case: Case, edges: Edges) -> Operations:
    ones = torch.ones(len(edges.source), device=case.device)
    shape = (case.nodes, case.nodes)
    matrix = torch.sparse_csr_tensor(edges.pointer, edges.source, ones, shape)
    return there_and_back(case.sums, lambda x: torch.sparse.mm(matrix, x), case, case.width)


def pyg(case: Case, edges: Edges) -> Operations:
    layers: Any = importlib.import_module("torch_geometric.nn")
    total = case.heads * case.channels
    layer = layers.GATConv(total, case.channels, case.heads, add_self_loops=False)
    layer, index = layer.to(case.device), torch.stack([edges.source, edges.target])
    return there_and_back(case.attention, lambda x: layer(x, index), case, total)


def dgl(case: Case, edges: Edges) -> Operations:
    library: Any = importlib.import_module("dgl")
    layers: Any = importlib.import_module("dgl.nn")
    graph = library.graph((edges.source, edges.target), num_nodes=case.nodes)
    graph = graph.formats(["csc", "csr", "coo"])
    total = case.heads * case.channels
    layer = layers.GATConv(total, case.channels, case.heads, allow_zero_in_degree=True)
    layer = layer.to(case.device)
    return {
        **there_and_back(case.sums, lambda x: library.ops.copy_u_sum(graph, x), case, case.width),
        **there_and_back(case.attention, lambda x: layer(graph, x).flatten(1), case, total),
    }


PEERS: dict[str, Callable[[Case, Edges], Operations]] = {
    "torch.sparse": torch_sparse,
    "PyG GATConv": pyg,
    "DGL": dgl,
}


def operations(name: str, case: Case) -> Operations:
    """What the named peer offers.

    Raises:
        ImportError or whatever else it raises where it doesn't import here.
    """
    return PEERS[name](case, power_law_edges(case))
