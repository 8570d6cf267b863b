"""Arguments of layers and of their calls: as in PyTorch Geometric, or refused in one line."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.nn.linear import is_sharded
from hpcgnn.storage.read.load import sparse_rows
from tests.graphs import collect, distribute, random_graph
from tests.nn import test_message_layers as message_layers

mpi = pytest.mark.mpi
WIDTH = 6


def mlp() -> torch.nn.Sequential:
    return torch.nn.Sequential(nn.Linear(WIDTH, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))


LAYERS = {
    "gcn": lambda: nn.GCNConv(WIDTH, 4),
    "sage": lambda: nn.SAGEConv(WIDTH, 4),
    "sage max": lambda: nn.SAGEConv(WIDTH, 4, aggr="max"),
    "gat": lambda: nn.GATConv(WIDTH, 4, edge_dim=2),
    "gatv2": lambda: nn.GATv2Conv(WIDTH, 4, edge_dim=2),
    "gin": lambda: nn.GINConv(mlp(), eps=0.1, train_eps=True),
    "rgcn": lambda: nn.RGCNConv(WIDTH, 4, 3, num_bases=2),
    "sgc": lambda: nn.SGConv(WIDTH, 4, K=2),
    "dagnn": lambda: nn.AdaptiveDepth(WIDTH, 2),
    "pointwise": lambda: nn.Pointwise(WIDTH, 4),
    "appnp": lambda: nn.APPNP(2, 0.1),
    "messages": lambda: nn.MessagePassing("max"),
}


@pytest.fixture
def whole():
    whole = random_graph(30, 90, 1, width=WIDTH, num_relations=3, edge_width=2)
    whole.features[np.random.default_rng(2).random(whole.features.shape) < 0.5] = 0
    return whole


@pytest.fixture
def graph(comm, whole):
    return distribute(whole, comm)


def made_sparse(rows: torch.Tensor):
    dense = rows.numpy()
    row, column = np.nonzero(dense)
    counts = np.bincount(row, minlength=len(dense))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sparse_rows(indptr, column, dense[row, column], dense.shape[1])


@mpi
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "sage max"])
def test_sparse_features_give_the_same_results_as_dense_ones(comm, graph, name):
    layer = LAYERS[name]()
    layer.load_state_dict(comm.broadcast(layer.state_dict()))
    found = []
    for x in (graph.features.clone(), made_sparse(graph.features)):
        y = layer(graph, x)
        if y.requires_grad:
            (y * y).sum().backward()
        grads = [comm.allreduce(p.grad) for p in layer.parameters()]
        layer.zero_grad()
        found.append([collect(graph, y), *grads])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@mpi
def test_gin_accepts_a_network_that_does_not_begin_with_a_linear_layer(graph):
    layer = nn.GINConv(torch.nn.Sequential(torch.nn.ReLU(), nn.Linear(WIDTH, 4)))
    dense = layer(graph, graph.features.clone())
    torch.testing.assert_close(layer(graph, made_sparse(graph.features)), dense)


@mpi
@pytest.mark.parametrize("name", LAYERS)
def test_wrong_inputs_are_refused_by_every_layer(graph, name):
    layer, n = LAYERS[name](), graph.num_local_nodes
    wrong = {
        f"give a row for each of this part's {n} nodes": torch.randn(n + 70, WIDTH),
        f"row for each of this part's {n} nodes": torch.randn(max(n - 1, 0) or n + 1, WIDTH),
        "must be floating point; call .float()": torch.ones(n, WIDTH, dtype=torch.int64),
        "torch.from_numpy": np.ones((n, WIDTH), np.float32),
        "must be a matrix": torch.randn(n),
    }
    if name not in ("appnp", "messages", "gin", "dagnn"):
        wrong["is float64, the weights are float32"] = torch.randn(n, WIDTH).double()
    if name not in ("appnp", "messages", "gin"):
        wrong |= {f"must be a matrix of {WIDTH} columns": torch.randn(n, WIDTH + 1)}
    for text, x in wrong.items():
        with pytest.raises(InputError, match=text):
            layer(graph, x)
    with pytest.raises(InputError, match=r"called as layer\(graph, x\)"):
        layer(graph.features, graph)
    if name not in ("appnp", "messages", "gin", "dagnn"):
        for dtype in (torch.float16, torch.bfloat16):
            with pytest.raises(InputError, match=r"weights in b?float16, .* call model.float\(\)"):
                layer.to(dtype)(graph, torch.randn(n, WIDTH).to(dtype))


def test_wrong_widths_are_refused_in_one_line(graph):
    for x in (torch.randn(30, 5), torch.ones(30, WIDTH, dtype=torch.int32), [[1.0] * WIDTH]):
        with pytest.raises(InputError, match="Linear: must be"):
            nn.Linear(WIDTH, 2)(x)
    with pytest.raises(InputError, match="Linear: must be a matrix of 6 columns"):
        nn.GINConv(mlp())(graph, torch.randn(30, 5))
    with pytest.raises(InputError, match="a row for each of this part's 90 edges"):
        nn.MessagePassing()(graph, graph.features, torch.ones(3, 2))
    with pytest.raises(InputError, match="edge_dim is 3"):
        nn.GATConv(WIDTH, 4, edge_dim=3)(graph, graph.features)


WITH_PARAMETERS = {name: make for name, make in LAYERS.items() if name not in ("appnp", "messages")}
WITH_PARAMETERS |= {
    f"message layer {name}": partial(make, nn) for name, (_, make) in message_layers.LAYERS.items()
}


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_reset_parameters_draws_what_the_constructor_draws(name):
    torch.manual_seed(3)
    first = WITH_PARAMETERS[name]()
    again = WITH_PARAMETERS[name]()
    for parameter in again.parameters():
        parameter.data.fill_(9)
    again.reset_parameters()
    for (key, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert not (b == 9).any(), key
        assert b.detach().abs().max() <= 3 * a.detach().abs().max() + 1e-6, key


def test_keywords_of_pytorch_geometric():
    nn.GCNConv(WIDTH, 4, cached=True, aggr="add", flow="source_to_target", node_dim=0)
    nn.SGConv(WIDTH, 4, cached=True, add_self_loops=False)
    nn.APPNP(3, 0.1, cached=True, normalize=False)
    nn.GATConv(WIDTH, 4, fill_value="mean", aggr="add")
    nn.RGCNConv(WIDTH, 4, 3, is_sorted=True, aggr="add")
    assert nn.SAGEConv(WIDTH, 4, aggr="add").aggr == "sum"
    assert nn.MessagePassing(["add", "max"]).aggr == ("sum", "max")
    refused = {
        "GCNConv: aggr can only be 'add' or 'sum'": lambda: nn.GCNConv(WIDTH, 4, aggr="max"),
        "GCNConv: flow can only be": lambda: nn.GCNConv(WIDTH, 4, flow="target_to_source"),
        "GCNConv has no argument depth": lambda: nn.GCNConv(WIDTH, 4, depth=3),
        "add_self_loops needs normalize": lambda: nn.GCNConv(
            WIDTH, 4, normalize=False, add_self_loops=True
        ),
        "GATConv: fill_value can only be": lambda: nn.GATConv(WIDTH, 4, fill_value=0.0),
        r"GATConv: dropout must be in \[0, 1\)": lambda: nn.GATConv(WIDTH, 4, dropout=1.0),
        "in_channels must be an integer": lambda: nn.SAGEConv((WIDTH, WIDTH), 4),
        "RGCNConv: num_blocks can only be": lambda: nn.RGCNConv(WIDTH, 4, 3, num_blocks=2),
        "APPNP: dropout can only be 0.0": lambda: nn.APPNP(3, 0.1, dropout=0.5),
    }
    for text, make in refused.items():
        with pytest.raises(InputError, match=text):
            make()


@pytest.mark.parametrize("train_eps", [False, True])
def test_eps_of_gin_is_a_number(graph, train_eps):
    layer = nn.GINConv(nn.Linear(WIDTH, 4), eps=0, train_eps=train_eps)
    state = layer.state_dict() | {"eps": torch.tensor([0.3])}
    layer.load_state_dict(state)
    assert layer.eps.item() == pytest.approx(0.3)
    layer(graph, graph.features)
    layer.reset_parameters()
    assert layer.eps.item() == 0


def test_copies_of_an_embedding_remain_sharded(graph, monkeypatch):
    embedding = nn.Embedding(graph, 4, 0)
    assigned = nn.Embedding(graph, 4, 0)
    assigned.load_state_dict(embedding.state_dict(), assign=True)
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
    swapped = copy.deepcopy(embedding).double().float()
    for one in (
        copy.deepcopy(embedding),
        pickle.loads(pickle.dumps(embedding)),
        assigned,
        swapped,
        embedding.to(torch.float64),
    ):
        assert is_sharded(one.weight) and one.weight.requires_grad
        torch.testing.assert_close(one.weight.float(), embedding.weight.float())
    assert is_sharded(copy.deepcopy(embedding.weight))


def test_reducing_a_gradient_of_none_names_the_reason(comm):
    unused = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="a parameter that the loss doesn't use is None"):
        comm.allreduce(unused.grad)
