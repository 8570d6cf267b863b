"""Behaviour under autograd: saved state, second derivatives, cached sums."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import hpcgnn
from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.nn.linear import _AddedProduct, _DenseLinear
from hpcgnn.nn.norm import _LayerNorm
from hpcgnn.sar.aggregation import neighbour_sum
from hpcgnn.sar.autograd import _Refusal, first_order, is_own, is_spare, last_saved
from hpcgnn.sar.pairs import NodePairs, pair_values
from hpcgnn.storage.read.load import sparse_rows
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi
WIDTH = 6


@pytest.fixture
def graph(comm):
    torch.manual_seed(0)
    return distribute(random_graph(40, 200, 1, width=WIDTH), comm)


class Edge(nn.MessagePassing):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__(["sum", "max", "std"])
        self.lin, self.p = torch.nn.Linear(WIDTH, WIDTH), p

    def message(self, x_src, x_dst, edge):
        return torch.nn.functional.dropout(torch.tanh(self.lin(x_src)), self.p, self.training)


LAYERS = {
    "gcn": lambda: nn.GCNConv(WIDTH, 4),
    "sage": lambda: nn.SAGEConv(WIDTH, 4),
    "max": lambda: nn.SAGEConv(WIDTH, 4, aggr="max"),
    "sgc": lambda: nn.SGConv(WIDTH, 4, 2),
    "gat": lambda: nn.GATConv(WIDTH, 4),
    "gatv2": lambda: nn.GATv2Conv(WIDTH, 4),
    "messages": Edge,
    "batch norm": lambda: nn.BatchNorm(WIDTH),
    "graph norm": lambda: nn.GraphNorm(WIDTH),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_refused(graph, name):
    layer = LAYERS[name]()
    x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)
    y = layer(graph, x).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(grad.square().sum(), x)


def test_every_function_refuses_second_derivatives():
    functions = set()
    for module in pkgutil.walk_packages(hpcgnn.__path__, "hpcgnn."):
        if module.name.startswith(("hpcgnn.nn", "hpcgnn.sar", "hpcgnn.models")):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, torch.autograd.Function):
                    functions.add(value)
    functions -= {_Refusal, torch.autograd.Function}
    # These have second derivatives, see test_hubs.py.
    functions -= {_DenseLinear, _AddedProduct, _LayerNorm}
    assert len(functions) >= 12
    assert all(hasattr(function.backward, "__wrapped__") for function in functions), functions


@pytest.mark.parametrize("mode", ["sar", "sa"])
def test_changing_an_input_before_backward_raises(comm, graph, mode):
    graph.execution.mode, layer = mode, Edge()
    for change in ("input", "weight", "attribute"):
        x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True) * 1.0
        layer.scale = torch.ones(3)
        y = layer(graph, x).sum()
        with torch.no_grad():
            {"input": x, "weight": layer.lin.weight, "attribute": layer.scale}[change].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@pytest.mark.parametrize("conv", [nn.GATConv, nn.GATv2Conv])
def test_changing_attention_in_place_raises_with_advice(graph, conv):
    """Attention saves its output; torch's own error names neither the layer nor a remedy."""
    x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)
    y = torch.relu_(conv(WIDTH, 2)(graph, x))
    with pytest.raises(RuntimeError, match=r"use operations.*torch.relu.*inplace operation"):
        y.sum().backward()


def test_modes_of_forward_are_restored_in_backward(graph):
    torch.manual_seed(1)
    layer, x = Edge(0.5), torch.randn(graph.num_local_nodes, WIDTH)
    grads = []
    for between in (lambda: None, layer.eval):
        layer.train().zero_grad()
        y = layer(graph, x).square().sum()
        between()
        y.backward()
        grads.append(layer.lin.weight.grad.clone())
    assert torch.equal(*grads) and not layer.training and not layer.lin.training


@pytest.mark.parametrize("mode", ["sar", "oneshot"])
def test_captured_tensors_get_gradients(comm, graph, mode):
    graph.execution.mode = mode

    class Gated(nn.MessagePassing):
        def __init__(self):
            super().__init__("sum", piece=7)
            self.lin = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, graph, x):
            self.gate = torch.sigmoid(self.lin(context))
            return super().forward(graph, x)

        def message(self, x_src, x_dst, edge):
            return x_src * self.gate * factor

    context = torch.ones(WIDTH, requires_grad=True)
    factor = torch.tensor(2.0, requires_grad=True)
    layer, x = Gated(), torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)
    weights = torch.randn(graph.num_local_nodes, WIDTH)
    leaves = [x, context, factor, *layer.parameters()]
    y = layer(graph, x)
    layer(graph, 2 * x)  # another gate, before the backward pass of the first
    found = torch.autograd.grad((y * weights).sum(), leaves)
    gate = torch.sigmoid(layer.lin(context))
    sums = neighbour_sum(graph, x, weighted=False)
    # d/dgate is with the edges' sources at the owner of the destinations, as is the sum.
    expected = torch.autograd.grad((sums * gate * factor * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["sar", "sa"])
@pytest.mark.parametrize("name", ["gat", "gatv2", "messages"])
def test_a_kept_loss_does_not_keep_arrays_alive(graph, name, mode):
    graph.execution.mode, layer = mode, LAYERS[name]()
    x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)
    y = layer(graph, x)
    loss = y.square().sum()
    del y
    gc.collect()
    loss.backward()
    held, seen, queue = [], set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        for value in getattr(node, "__dict__", {}).values():
            if value is graph:
                continue
            for item in [value, *getattr(value, "__dict__", {}).values()]:
                items = item if isinstance(item, list | tuple) else [item]
                held += [t for t in items if isinstance(t, torch.Tensor)]
    assert not held
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("change", ["input", "weight", "frozen", "attribute"])
def test_changing_an_input_before_its_recomputation_raises(comm, graph, change):
    if change == "attribute" and comm.size > 1:
        pytest.skip("ranks without rows see no other result, and wait for those that raise")
    layer, lin = nn.GATConv(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3)
    lin.weight.requires_grad_(change != "frozen")
    layer.scale = 1.0
    x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True) * 1.0
    y = nn.recomputed(graph, lambda x: lin(torch.relu(layer(graph, x)) * layer.scale), x)
    if change == "attribute":
        layer.scale = 2.0
    with torch.no_grad():
        {"input": x, "weight": layer.lin.weight, "frozen": lin.weight}.get(change, y[:0]).mul_(2)
    words = (
        "differs from the first" if change == "attribute" else "modified by an inplace operation"
    )
    with pytest.raises(RuntimeError, match=words):
        y.square().sum().backward()


@pytest.mark.parametrize("kind", ["recomputed", "pairs"])
def test_modes_of_surrounding_modules_are_restored_in_backward(graph, kind):
    layer, drop = nn.GATConv(WIDTH, WIDTH, dropout=0.5), torch.nn.Dropout(0.5)
    graph.set_epoch(1)
    number = np.arange(8) * graph.comm.size + graph.comm.rank
    pairs = NodePairs(number % 7, number % 5, number)

    def go(between):
        torch.manual_seed(3)
        layer.zero_grad()
        x = torch.ones(graph.num_local_nodes, WIDTH, requires_grad=True)
        if kind == "recomputed":
            y = nn.recomputed(graph, lambda x: drop(layer(graph, x)), x)
        else:
            y = pair_values(graph, x, pairs, lambda a, b: drop(a * b), piece=3)
        between()
        y.square().sum().backward()
        return x.grad

    expected = go(lambda: None)
    assert torch.equal(go(lambda: (layer.eval(), drop.eval())), expected)
    assert not layer.training and not drop.training


FIRST = {name: LAYERS[name] for name in ("gcn", "sage", "sgc")}


@pytest.mark.parametrize("name", FIRST)
def test_cached_sums_are_recomputed_when_the_features_change(comm, graph, name):
    layer = FIRST[name]()

    def check():
        found, graph.execution.cache_first = layer(graph, graph.features), False
        expected, graph.execution.cache_first = layer(graph, graph.features), True
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    with torch.inference_mode():
        layer(graph, graph.features)
    layer(graph, graph.features).sum().backward()
    check()
    graph = replace(graph, features=graph.features * 2)
    check()
    if comm.rank == 0:
        graph.features.mul_(3)  # only on this rank
    check()
    if comm.rank == 0:  # ways that torch's version counter doesn't notice
        graph.features.data.mul_(2)
    check()
    graph.features.numpy()[:] += 1
    check()
    graph.features.numpy()[-1:] += 1  # a single row
    check()
    graph.features.data = graph.features.data * 2
    check()
    graph.features.requires_grad_()
    layer(graph, graph.features).square().sum().backward()
    found, graph.features.grad, graph.execution.cache_first = graph.features.grad, None, False
    layer(graph, graph.features).square().sum().backward()
    torch.testing.assert_close(found, graph.features.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gcn", "gat", "sgc"])
def test_a_graph_first_seen_in_inference_mode_trains(graph, name):
    layer = LAYERS[name]()
    with torch.inference_mode():
        layer(graph, torch.ones(graph.num_local_nodes, WIDTH))
    layer(graph, torch.ones(graph.num_local_nodes, WIDTH, requires_grad=True)).sum().backward()


def test_sparse_features_changed_in_place_are_refused(graph):
    """Backward reads their transpose, a copy."""
    values, pointers = (
        graph.features.numpy(),
        np.arange(0, WIDTH * graph.num_local_nodes + 1, WIDTH),
    )
    columns = np.tile(np.arange(WIDTH), graph.num_local_nodes)
    sparse = replace(graph, features=sparse_rows(pointers, columns, values.ravel(), WIDTH))
    for layer in (nn.SAGEConv(WIDTH, 2), nn.GATConv(WIDTH, 2)):
        layer(sparse, sparse.features).sum().backward()
    other = replace(graph, features=sparse_rows(pointers, columns, values.ravel(), WIDTH))
    sparse.features.block.weight.mul_(2)
    other.features.block.weight.numpy()[:] *= 2
    for changed in (sparse, other) if graph.num_local_nodes else (sparse, sparse):
        for layer in (nn.SAGEConv(WIDTH, 2), nn.GATConv(WIDTH, 2)):
            with pytest.raises(InputError, match="sparse features were changed in place"):
                layer(changed, changed.features)


def test_cached_sums_do_not_keep_replaced_features_alive(graph):
    other = replace(graph, features=graph.features.clone())
    nn.GCNConv(WIDTH, 4)(other, other.features)
    former = weakref.ref(other.features)
    other = replace(other, features=graph.features)
    gc.collect()
    assert former() is None


class Told(torch.autograd.Function):
    """Doubles its input, and reports whether its gradient is referenced elsewhere."""

    @staticmethod
    def forward(ctx, x, told):
        ctx.told = told
        return 2 * x

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        ctx.told.append(is_own(grads))
        return 2 * grads[0], None


def test_references_to_a_gradient_are_detected(comm):
    """A backward may overwrite its gradient unless a hook, a branch or the caller references it."""
    x, held = torch.ones(4, requires_grad=True), []

    def told(use, given=None):
        found = []
        y = Told.apply(x, found)
        (use(y)).backward(given)
        return found[0]

    assert told(lambda y: (y * torch.ones(4)).square().sum())
    assert not told(lambda y: y.sum())  # one number, seen as four
    assert not told(lambda y: y, torch.ones(4))

    def hooked(y):
        y.register_hook(held.append)
        return (y * torch.ones(4)).square().sum()

    assert not told(hooked)
    held.clear()
    z = Told.apply(x, [])
    assert not told(lambda y: (y + z).square().sum())  # the sum passes the same gradient to both


class ToldOfSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, told):
        ctx.save_for_backward(x)
        ctx.told = told
        return 2 * x

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        (x,), _ = last_saved(ctx)
        ctx.told.append(is_spare(x))
        return 2 * grads[0], None


def test_references_to_saved_tensors_are_detected(comm):
    """A backward may overwrite its input unless a name, view, branch or later backward uses it."""
    leaf = torch.ones(4, requires_grad=True)

    def told(make=lambda: leaf * 1, also=lambda h: 0, **keywords):
        found = []
        h = make()
        loss = (also(h) + ToldOfSaved.apply(h, found)).sum()
        kept = (
            h if keywords.pop("held", False) else h.detach() if keywords.pop("seen", False) else 0
        )
        del h
        loss.backward(**keywords)
        return found[0], kept

    assert told()[0]
    assert not told(held=True)[0]
    assert not told(seen=True)[0]
    assert not told(retain_graph=True)[0]
    assert not told(make=lambda: leaf)[0]
    assert not told(also=torch.square)[0]  # which has saved it, too


def test_referenced_inputs_are_not_overwritten(graph):
    """Gradients of a narrowing layer overwrite its input only if nothing references it."""
    first, second = nn.SAGEConv(WIDTH, 5), nn.SAGEConv(5, 2)
    x = torch.randn(graph.num_local_nodes, WIDTH)

    def gradients(hold):
        h = first(graph, x)
        held, copy, y = hold(h), h.detach().clone(), second(graph, h)
        del h
        loss = y.square().sum()
        del y
        found = torch.autograd.grad(loss, [*first.parameters(), *second.parameters()])
        return found, held, copy

    expected, *_ = gradients(lambda h: None)
    for hold in (lambda h: h, lambda h: h.detach(), lambda h: h.detach().numpy()):
        found, held, copy = gradients(hold)
        assert torch.equal(torch.as_tensor(held), copy)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [nn.GATConv, nn.SAGEConv])
def test_a_hook_keeps_the_gradient_that_it_was_given(graph, kind):
    layer, dropout = kind(WIDTH, 4), nn.Dropout(0.3, layer=1, relu=True)
    x = torch.randn(graph.num_local_nodes, WIDTH, requires_grad=True)

    def gradients(hook):
        graph.set_epoch(1)
        y = layer(graph, x, then=dropout.rectifier(graph))
        if hook is not None:
            y.register_hook(hook)
        return torch.autograd.grad((y * y.detach()).sum(), [x, *layer.parameters()])

    held, copies = [], []

    def hook(grad):
        held.append(grad)
        copies.append(grad.clone())

    expected = gradients(None)
    assert all(map(torch.equal, gradients(hook), expected))
    assert torch.equal(held[0], copies[0])
