"""Every layer compared with PyTorch Geometric's on one process in float64, with equal weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcgnn import nn
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from tests.graphs import Whole, collect, distribute, local, random_graph, random_owner

pytestmark = pytest.mark.mpi

Make = Callable[[object], torch.nn.Module]
LAYERS: dict[str, Make] = {
    "gcn": lambda lib: lib.GCNConv(5, 3),
    "gcn wide": lambda lib: lib.GCNConv(5, 8),
    "gcn plain": lambda lib: lib.GCNConv(5, 3, normalize=False, add_self_loops=False),
    "sage": lambda lib: lib.SAGEConv(5, 3),
    "sage wide": lambda lib: lib.SAGEConv(5, 8, root_weight=False, normalize=True),
    "sage sum": lambda lib: lib.SAGEConv(5, 4, aggr="sum"),
    "sage max": lambda lib: lib.SAGEConv(5, 4, aggr="max"),
    "sage min": lambda lib: lib.SAGEConv(5, 4, aggr="min"),
    "gat": lambda lib: lib.GATConv(5, 4, heads=2),
    "gat mean": lambda lib: lib.GATConv(5, 3, heads=3, concat=False, negative_slope=0.1),
    "gat no loops": lambda lib: lib.GATConv(5, 8, add_self_loops=False),
}
ZOO: dict[str, Make] = {
    "gatv2": lambda lib: lib.GATv2Conv(5, 4, heads=2),
    "gatv2 shared": lambda lib: lib.GATv2Conv(5, 4, heads=2, concat=False, share_weights=True),
    "gin": lambda lib: lib.GINConv(torch.nn.Linear(5, 4), eps=0.3, train_eps=True),
    "appnp": lambda lib: lib.APPNP(4, 0.2),
    "sgc": lambda lib: lib.SGConv(5, 3, K=3),
    "sgc no loops": lambda lib: lib.SGConv(5, 3, K=2, add_self_loops=False),
    "appnp plain": lambda lib: lib.APPNP(2, 0.2, normalize=False),
    "sage project": lambda lib: lib.SAGEConv(5, 4, aggr="add", project=True),
    "gat residual": lambda lib: lib.GATConv(5, 4, heads=2, residual=True),
    "gatv2 residual": lambda lib: lib.GATv2Conv(5, 4, heads=2, concat=False, residual=True),
}
LAYERS |= ZOO
EDGES: dict[str, Make] = {
    "gat": lambda lib: lib.GATConv(5, 4, heads=2, edge_dim=3),
    "gatv2": lambda lib: lib.GATv2Conv(5, 4, heads=2, edge_dim=3),
    "gatv2 shared": lambda lib: lib.GATv2Conv(
        5, 3, heads=3, concat=False, add_self_loops=False, edge_dim=3, share_weights=True
    ),
}
MODES = ["sar", "sa", "oneshot"]
FEW = ["gcn", "sage wide", "sage max", "gat", "gatv2"]


def train_theirs(layer: torch.nn.Module, whole: Whole, *args: torch.Tensor) -> dict:
    """Return PyTorch Geometric's output and gradients on one process in float64."""
    x = torch.from_numpy(whole.features).double().requires_grad_()
    y = layer.double()(x, whole.edge_index, *args)
    (y * _weights(y.shape[1])[: len(y)]).sum().backward()
    return {"y": y.detach(), "x": x.grad, **_gradients(layer)}


def train_ours(
    layer: torch.nn.Module,
    graph: PartitionedGraph,
    whole: Whole,
    mode: str,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Return our output and gradients over the ranks, gathered."""
    comm, graph.execution.mode = graph.ring.comm, mode
    x = local(graph, whole.features).to(dtype).requires_grad_()
    y = layer.to(dtype)(graph, x)
    (y * local(graph, _weights(y.shape[1])[: whole.num_nodes]).to(dtype)).sum().backward()
    assert mode != "sar" or graph.ring.peak_bytes <= graph.ring.halo_buffer
    summed = {name: comm.allreduce(grad) for name, grad in _gradients(layer).items()}
    y_all, x_all = collect(graph, torch.cat([y, x.grad], dim=1)).split([y.shape[1], 5], dim=1)
    return {"y": y_all, "x": x_all, **summed}


def _weights(width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(500, width)))


def _gradients(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in layer.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return found


def check(found: dict, expected: dict, limit: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key].double(), value, rtol=limit, atol=limit * max(1.0, float(value.abs().max()))
        )


def compare(
    theirs, ours, whole: Whole, comm, modes: list[str], *args: torch.Tensor, limit64: float = 0
) -> None:
    """Compare both, with the weights that PyTorch Geometric draws on rank 0.

    Biases, which it sets to 0, are drawn here.

    With `limit64` ours must also agree to it in float64.
    """
    for name, parameter in theirs.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    theirs.load_state_dict(comm.broadcast(theirs.state_dict()))
    ours.load_state_dict(theirs.state_dict())
    expected = train_theirs(theirs, whole, *args)
    graph = distribute(whole, comm)
    for mode in modes:
        graph.execution.ring = Ring(comm, halo_buffer=4096)
        check(train_ours(ours, graph, whole, mode), expected)
        if limit64:
            check(train_ours(ours, graph, whole, mode, torch.float64), expected, limit64)
            ours.float()


@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_every_mode(comm, pyg, name):
    compare(LAYERS[name](pyg), LAYERS[name](nn), random_graph(9, 24), comm, MODES)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_many_messages(comm, pyg, name):
    """There are enough nodes for 4 KiB buffers to cut every block into several messages."""
    modes = MODES if name in FEW else ["sar"]
    compare(LAYERS[name](pyg), LAYERS[name](nn), random_graph(500, 2000), comm, modes)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(7, 14), (8, 30), (9, 4)])
@pytest.mark.parametrize("name", FEW)
def test_layers_on_small_graphs(comm, pyg, name, num_nodes, num_edges):
    whole = random_graph(num_nodes, num_edges, symmetric=num_nodes == 8)
    compare(LAYERS[name](pyg), LAYERS[name](nn), whole, comm, ["sar"])


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(9, 4), (40, 150), (500, 2000)])
@pytest.mark.parametrize("name", EDGES)
def test_layers_with_edge_features(comm, pyg, name, num_nodes, num_edges):
    whole = random_graph(num_nodes, num_edges, edge_width=3, symmetric=num_nodes == 40)
    features = torch.from_numpy(whole.edge_features).double()
    limit = 1e-6 if EDGES[name](nn).add_self_loops else 1e-11  # loops have float32 mean features
    compare(EDGES[name](pyg), EDGES[name](nn), whole, comm, MODES, features, limit64=limit)


def test_missing_edge_features_are_reported():
    graph = distribute(random_graph(9, 24), Communicator(MPI.COMM_SELF))
    with pytest.raises(InputError, match="edge features"):
        nn.GATv2Conv(5, 4, edge_dim=3)(graph, local(graph, random_graph(9, 24).features))


def relational(num_nodes: int, num_edges: int, owner: np.ndarray) -> Whole:
    """Relations 2 and 4 are empty, 5 has the same edge three times, 3 ends only on rank 0."""
    whole = random_graph(num_nodes, num_edges, num_relations=2)
    whole.relation[whole.relation == 1] = 5
    many = np.arange(1, num_edges, 5)
    for ends in (whole.source, whole.target):
        ends[many[1:3]] = ends[many[0]]
    whole.relation[many[:3]] = 5
    whole.relation[(owner[whole.target] == 0) & (np.arange(num_edges) % 3 == 0)] = 3
    order = np.lexsort((whole.source, whole.target))
    for name in ("source", "target", "relation"):
        setattr(whole, name, getattr(whole, name)[order])
    return whole


@pytest.mark.parametrize(
    ("num_bases", "aggr", "width", "num_nodes", "num_edges"),
    [  # Every pair of values occurs together, since each is read in a different place.
        (None, "mean", 3, 9, 24),
        (2, "sum", 8, 9, 24),
        (None, "sum", 8, 40, 150),
        (2, "mean", 3, 40, 150),
        (None, "mean", 8, 500, 2000),
        (2, "sum", 3, 500, 2000),
        (None, "sum", 3, 9, 24),
        (2, "mean", 8, 40, 150),
    ],
)
def test_rgcn(comm, pyg, num_bases, aggr, width, num_nodes, num_edges):
    whole = relational(num_nodes, num_edges, random_owner(num_nodes, comm.size))
    theirs = pyg.RGCNConv(5, width, 7, num_bases=num_bases, aggr=aggr)
    ours = nn.RGCNConv(5, width, 7, num_bases=num_bases, aggr=aggr)
    limit = 1e-12 if aggr == "sum" else 1e-6  # a mean's factors are float32
    relation = torch.from_numpy(whole.relation).long()
    compare(theirs, ours, whole, comm, MODES, relation, limit64=limit)


def test_rgcn_on_a_symmetric_graph(comm, pyg):
    whole = random_graph(40, 150, num_relations=4, symmetric=True)
    relation = torch.from_numpy(whole.relation).long()
    compare(pyg.RGCNConv(5, 3, 4), nn.RGCNConv(5, 3, 4), whole, comm, MODES, relation, limit64=1e-6)


@pytest.mark.parametrize("improved", [False, True])
def test_weighted_gcn(comm, pyg, improved):
    whole = random_graph(40, 150, weighted=True)
    theirs, ours = pyg.GCNConv(5, 3, improved=improved), nn.GCNConv(5, 3, improved=improved)
    compare(theirs, ours, whole, comm, ["sar"], torch.from_numpy(whole.weight).double())
