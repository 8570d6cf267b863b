"""Functions that run again in backward, where torch keeps, recomputes or replaces tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from hpcgnn import nn
from hpcgnn.sar.pairs import NodePairs, pair_values
from hpcgnn.tasks.pairs import PairMLP
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi
WIDTH = 4


class Gated(nn.MessagePassing):
    """Messages that read a tensor made in `forward` and an enclosed one."""

    def __init__(self) -> None:
        super().__init__("softmax")
        self.lin, self.scale = nn.Linear(WIDTH, WIDTH), torch.nn.Parameter(torch.rand(WIDTH))

    def forward(self, graph, x):
        self.gate = torch.sigmoid(self.scale * 3)
        return super().forward(graph, x)

    def message(self, x_src, x_dst, edge):
        value = torch.tanh(self.lin(x_src)) * self.gate
        return value, value[:, :1]


LAYERS = {
    "gated": Gated,
    "gine": lambda: nn.GINEConv(torch.nn.Linear(WIDTH, 3), edge_dim=2),
    "transformer": lambda: nn.TransformerConv(WIDTH, 3, heads=2, edge_dim=2, beta=True),
    "pna": lambda: nn.PNAConv(WIDTH, 3, ["mean", "max"], ["linear"], torch.ones(9), edge_dim=2),
    "rgat": lambda: nn.RGATConv(WIDTH, 3, 3, heads=2, edge_dim=2),
    "gen": lambda: nn.GENConv(WIDTH, WIDTH, edge_dim=2, norm="layer"),
    "gat": lambda: nn.GATConv(WIDTH, 3, heads=2, edge_dim=2),
    "rgcn": lambda: nn.RGCNConv(WIDTH, 3, 3, num_bases=2),
}


def kept(function, x):
    with torch.autograd.graph.save_on_cpu():
        return function(x)


HOOKS = {
    "save_on_cpu": kept,
    "checkpoint": lambda function, x: checkpoint(function, x, use_reentrant=False),
}


@pytest.fixture
def graph(comm):
    torch.manual_seed(0)
    whole = random_graph(30, 150, 1, width=WIDTH, num_relations=3, edge_width=2)
    return distribute(whole, comm)


def gradients(function, x, weights):
    """Return the output, and the gradients of x and of the weights."""
    x = x.clone().requires_grad_()
    y = function(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *weights], allow_unused=True)]


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_with_saved_tensor_hooks(graph, name, hooks):
    layer, x = LAYERS[name](), torch.randn(graph.num_local_nodes, WIDTH)
    weights = list(layer.parameters())
    expected = gradients(lambda x: layer(graph, x), x, weights)
    found = gradients(lambda x: HOOKS[hooks](lambda x: layer(graph, x), x), x, weights)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_with_other_weights_reads_these_in_backward_too(graph, name):
    layer, other = LAYERS[name](), LAYERS[name]()
    x = torch.randn(graph.num_local_nodes, WIDTH)
    expected = gradients(lambda x: other(graph, x), x, list(other.parameters()))
    weights = {n: w.detach().clone().requires_grad_() for n, w in other.named_parameters()}
    own = {n: w.detach().clone() for n, w in layer.named_parameters()}
    found = gradients(
        lambda x: functional_call(layer, weights, (graph, x)), x, list(weights.values())
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(layer.named_parameters()), own)


def test_a_weight_changed_between_forward_and_backward_raises(graph):
    layer, x = LAYERS["gine"](), torch.randn(graph.num_local_nodes, WIDTH)
    y = kept(lambda x: layer(graph, x), x)
    with torch.no_grad():
        layer.lin.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("hooks", HOOKS)
def test_decoders_of_pairs_get_gradients(graph, hooks):
    decoder, ends = PairMLP(WIDTH, 2), np.arange(min(9, graph.num_nodes))
    x = torch.randn(graph.num_local_nodes, WIDTH)
    pairs, weights = NodePairs(ends, ends[::-1].copy(), ends), list(decoder.parameters())

    def values(x):
        return pair_values(graph, x, pairs, decoder)

    expected = gradients(values, x, weights)
    torch.testing.assert_close(gradients(lambda x: HOOKS[hooks](values, x), x, weights), expected)


class Counting(nn.MessagePassing):
    """Messages that change a buffer, as norms with running statistics do."""

    def __init__(self) -> None:
        super().__init__("sum")
        self.register_buffer("edges", torch.zeros((), dtype=torch.int64))

    def message(self, x_src, x_dst, edge):
        self.edges += len(x_src)
        return x_src * x_dst


def test_buffers_keep_the_values_of_forward(graph):
    layer, x = Counting(), torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)
    y = layer(graph, x)
    seen = int(layer.edges)
    y.square().sum().backward()
    assert int(layer.edges) == seen > 0
