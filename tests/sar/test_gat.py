"""Which products of attention layers are kept for backward in mode `sar`."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.kept import Kept
from hpcgnn.models.stack import Stack
from hpcgnn.sar import gat, products
from tests.graphs import distribute, random_graph
from tests.sar.test_sage import NODES, WIDTH, ring_of_nodes

pytestmark = pytest.mark.mpi


def three_layers(a: int, b: int, layer: int) -> nn.GATConv:
    return nn.GATConv(a, b // 2, 2, dropout=0.3, layer=layer)


@pytest.mark.parametrize("outputs", [6, 4])
def test_the_last_layer_and_a_wide_one_before_it_reuse_their_products(comm, monkeypatch, outputs):
    graph = distribute(random_graph(40, 160, width=6), comm)
    torch.manual_seed(0)
    model = Stack(6, 8, outputs, 3, three_layers)
    wide = outputs == 4  # the second layer, whose 8 columns are twice as many
    made, again = [], []

    def scored_product(x, weight, dtype, arrays, *vectors):
        found = plain(x, weight, dtype, arrays, *vectors)
        (made if vectors else again).append(weakref.ref(found.z_NK))  # backward needs no scores
        return found

    plain = gat.ScoredProduct
    monkeypatch.setattr(gat, "ScoredProduct", scored_product)

    def gradients(keeps: bool) -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        made.clear()
        again.clear()
        loss = model(graph, graph.features).square().sum()
        first, second, third = (ref() for ref in made)
        assert first is None and third is graph.execution.newest is not None
        assert second is graph.execution.wide and (second is not None) == wide
        if not keeps:
            second = third = graph.execution.newest = graph.execution.wide = None
        del second, third
        loss.backward()
        assert graph.execution.newest is graph.execution.wide is None
        assert all(ref() is None for ref in made)
        return len(again), [parameter.grad.clone() for parameter in model.parameters()]

    with_it, expected = gradients(keeps=True)
    without, found = gradients(keeps=False)
    assert (with_it, without) == (1 if wide else 2, 3)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("bf16", [False, True])
def test_slabs_of_rows_give_the_same_results_with_retain_graph(comm, monkeypatch, bf16):
    """Gradients of many slabs; a second backward pass needs what the first one must not free."""
    graph = distribute(random_graph(4000, 9000, width=6), comm)
    torch.manual_seed(0)
    model = Stack(6, 8, 4, 3, three_layers, dropout=0.3)

    def gradients(times: int) -> list[torch.Tensor]:
        model.zero_grad()
        graph.set_epoch(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(graph, graph.features).float().square().sum()
        for time in range(times):
            model.zero_grad()
            loss.backward(retain_graph=time + 1 < times)
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole = gradients(1)
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    slabs, twice = gradients(1), gradients(2)
    assert all(map(torch.equal, slabs, twice))
    for one, other in zip(slabs, whole, strict=True):
        assert (one - other).abs().max() <= (2e-2 if bf16 else 1e-5) * other.abs().max()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
def test_products_overlap_with_messages_and_give_the_same_bits(comm, monkeypatch, mode, bf16):
    """Forward for rows that are not sent, and for all rows where backward recomputes them."""
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    whole = ring_of_nodes()
    owners = (np.arange(NODES) * comm.size // NODES).astype(int)
    graph = distribute(whole, comm, owners, mode=mode)
    later = []

    class Recorded(products.ScoredProduct):
        def turns(self, first=0):
            sent, others = super().turns(first)
            later.append(len(others))
            return sent, others

    monkeypatch.setattr(gat, "ScoredProduct", Recorded)
    torch.manual_seed(0)
    first, second = nn.GATConv(WIDTH, 3, 2), nn.GATConv(6, 2, 2)
    x = graph.features.clone().requires_grad_()

    def found() -> list[torch.Tensor]:
        inputs = (x, *first.parameters(), *second.parameters())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = second(graph, first(graph, x))
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)]

    meanwhile = found()
    waited = [left for left in later if left]
    assert bool(waited) == (len(x) > 1024 + 2)  # each part sends two rows, its last ones
    monkeypatch.setattr(gat, "first_sent", lambda edges: 0)
    assert all(map(torch.equal, found(), meanwhile))

    done, before = [], gat.AfterEdges.before

    def noted(after, end, progress):
        before(after, end, progress)
        done.append(after.done)

    monkeypatch.setattr(gat.AfterEdges, "before", noted)
    assert all(map(torch.equal, found(), meanwhile))
    early = comm.size > 1 and mode == "sar"
    assert done == [(len(x) - 2) // 1024 * 1024] * 2 * early
    monkeypatch.setattr(gat.AfterEdges, "before", lambda *_: None)
    assert all(map(torch.equal, found(), meanwhile))


def test_a_backward_that_failed_can_be_repeated(comm, monkeypatch):
    """With retain_graph, while the error holds z, over which gradients were written early."""
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    owners = (np.arange(NODES) * comm.size // NODES).astype(int)
    graph, layer = distribute(ring_of_nodes(), comm, owners), nn.GATConv(WIDTH, WIDTH)
    x = graph.features.clone().requires_grad_()
    layer(graph, x).sin().sum().backward()
    expected, x.grad = x.grad, None
    loss = layer(graph, x).sin().sum()
    with monkeypatch.context() as failing, pytest.raises(TypeError) as error:
        failing.setattr(gat.AfterEdges, "finish", None)
        loss.backward(retain_graph=True)
    loss.backward()
    assert error.tb is not None and torch.equal(x.grad, expected)


def test_inference_keeps_no_arrays(comm):
    graph = distribute(random_graph(9, 24, width=6), comm)
    with torch.no_grad():
        three_layers(6, 4, 1)(graph, graph.features)
    assert graph.execution.newest is None


@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
@pytest.mark.parametrize(("p", "bias"), [(0.5, True), (0.3, True), (0.3, False), (0.0, True)])
def test_relu_and_dropout_fused_into_the_layer(comm, mode, p, bias):
    """The same as after the layer; with powers of two to the bit, gradients too."""
    graph = distribute(random_graph(60, 300, width=6), comm, mode=mode)
    torch.manual_seed(0)
    layer = nn.GATConv(6, 4, 2, dropout=0.2, bias=bias, layer=1)
    if bias:
        torch.nn.init.normal_(layer.bias)
    dropout = nn.Dropout(p, layer=2, relu=True)
    scale = torch.arange(8.0)
    graph.set_epoch(1)
    found = []
    for inside in (False, True):
        layer.zero_grad()
        x = graph.features.clone().requires_grad_()
        y = (
            layer(graph, x, then=dropout.rectifier(graph))
            if inside
            else dropout(graph, layer(graph, x))
        )
        (y * y * scale).sum().backward()
        found.append([y.detach(), x.grad, *(w.grad for w in layer.parameters())])
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        if p in (0, 0.5):
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("edge_width", [0, 2])
def test_gradients_computed_head_by_head(comm, edge_width, precision, monkeypatch):
    """Equal to those of all heads at once, to rounding; large arrays then hold one head."""
    graph = distribute(random_graph(300, 900, width=6, edge_width=edge_width), comm)
    torch.manual_seed(0)
    layer = nn.GATConv(6, 8, 3, dropout=0.2, edge_dim=edge_width or None, layer=1)
    dropout, found = nn.Dropout(0.3, layer=2, relu=True), []
    for large in (1 << 60, 0):
        monkeypatch.setattr(gat, "_LARGE", large)
        monkeypatch.setattr(gat, "_WIDE", 1)
        layer.zero_grad()
        x = graph.features.clone().requires_grad_()
        graph.execution.kept = Kept([])  # as when memory is saved
        with torch.autocast("cpu", precision, enabled=precision is not None):
            y = layer(graph, x, then=dropout.rectifier(graph))
        graph.execution.newest = graph.execution.kept = None
        (y * torch.linspace(-1, 2, 24)).square().sum().backward()
        found.append([x.grad, *(comm.allreduce(w.grad) for w in layer.parameters())])
    assert gat.head_groups(graph, 3, 8) == [range(1), range(1, 2), range(2, 3)]
    limit = 1e-5 if precision is None else 1e-2
    for whole, apart in zip(*found, strict=True):
        assert float((whole - apart).norm()) <= limit * float(whole.norm()) + 1e-6


def test_a_stack_keeps_one_array_per_hidden_gat_layer(comm):
    """It keeps the next layer's input, but not the ReLU's."""
    graph = distribute(random_graph(60, 300, width=6), comm)
    model = Stack(6, 64, 4, 3, lambda a, b, layer: nn.GATConv(a, b // 2, 2, layer=layer))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (graph.num_local_nodes, 64):
            kept[tensor.untyped_storage().data_ptr()] = 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(graph, graph.features).sum()
    assert len(kept) == (2 if graph.num_local_nodes else len(kept))
    loss.backward()


def test_a_relu_before_heads_are_averaged_is_refused(comm):
    graph = distribute(random_graph(9, 24, width=6), comm)
    then = nn.Dropout(0.5, layer=2, relu=True).rectifier(graph)
    with pytest.raises(InputError, match="concat=True and residual=False"):
        nn.GATConv(6, 4, 2, concat=False)(graph, graph.features, then=then)
