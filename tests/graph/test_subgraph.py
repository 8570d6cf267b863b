"""Pruned graphs and graphs with hidden edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.places import EdgeEnds, FindPlaces
from hpcgnn.graph.subgraph import message_flow, without_edges
from hpcgnn.models.stack import Stack
from hpcgnn.nn.layer import hops_of
from hpcgnn.sar.aggregation import neighbour_sum
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from tests.graphs import Whole, collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
DEEP = ["sgc", "appnp", "dagnn"]
# Each with weights if it reads them; two without, too.
MODELS = [("gat", False), ("gatv2", False), ("rgcn", False), ("gcn", False), ("sage", False)]
MODELS += [(name, True) for name in ("gcn", "sage", "gin", *DEEP)]


def few_targets(num_edges=500, **options):
    whole = random_graph(300, num_edges, seed=2, num_relations=3, **options)
    whole.split[:] = 0
    whole.split[::40] = 1
    return whole


@pytest.mark.slow
@pytest.mark.parametrize(("model", "weighted"), MODELS)
def test_pruning_keeps_losses_and_sends_fewer_bytes(comm, shared_path, model, weighted):
    """Several hops of few edges in models that make some in one layer, or after all layers."""
    whole = few_targets(330 if model in DEEP else 500, weighted=weighted)
    losses, sent = {}, {}
    for prune in (False, True):
        graph = distribute(whole, comm, halo_buffer=4096)
        config = Config.of(
            model=model,
            layers=3,
            hidden=8,
            heads=2,
            dropout=0.3,
            norm="layer",
            residual=True,
            attention_dropout=0.2,
            epochs=2,
            eval_every=10,
            prune=prune,
            halo_buffer="4096",
            fewest_rows=False,
            power=3,
        )
        folder = shared_path / str(prune)
        trainer = configured_trainer(graph, config, folder)
        assert (trainer.call.flow is not None) == prune
        before = graph.ring.bytes_sent
        trainer._epoch(1)
        losses[prune] = [trainer._epoch(2)["loss"]]
        sent[prune] = comm.allreduce(graph.ring.bytes_sent - before)
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)
    assert sent[True] < 0.7 * sent[False] or comm.size == 1


class Twice(torch.nn.Module):
    """A layer of two hops that reports them."""

    hops = 2

    def forward(self, graph, x):
        return neighbour_sum(graph, neighbour_sum(graph, x))


class Silent(Twice):
    """A layer of three hops that inherits a wrong number of hops."""

    def forward(self, graph, x):
        return neighbour_sum(graph, super().forward(graph, x))


class Message(nn.MessagePassing):
    def message(self, x_src, x_dst, edge):
        return x_src + x_dst


OWN = {
    "twice": lambda a, b, layer: Twice(),
    "silent": lambda a, b, layer: Silent(),
    "messages": lambda a, b, layer: Message("max"),
    "one of each": lambda a, b, layer: (Twice(), Silent(), Message(), Twice())[layer - 1],
}


def test_layers_report_their_number_of_hops():
    layers = [nn.GCNConv(5, 5), nn.SGConv(5, 5, K=4), nn.APPNP(7, 0.1), nn.Pointwise(5, 5)]
    assert [hops_of(layer) for layer in layers] == [1, 4, 7, 0]
    assert [hops_of(layer) for layer in (Twice(), Silent(), Message())] == [2, None, 1]
    layer = Silent()
    layer.hops = 3
    assert hops_of(layer) == 3


@pytest.mark.parametrize("layers", [3, 4])
def test_pruning_keeps_losses_where_a_layer_makes_rows_for_the_next(comm, shared_path, layers):
    """GraphSAGE without norms: a pruned second layer picks rows of the first one's output."""
    losses = []
    for prune in (False, True):
        graph = distribute(few_targets(), comm, halo_buffer=4096)
        config = Config.of(
            model="sage", layers=layers, hidden=5, dropout=0.3, epochs=2, prune=prune, eval_every=10
        )
        found: list[float] = []
        note = [lambda _, record, found=found: found.append(record["loss"])]
        configured_trainer(
            graph, config, shared_path / str(prune), show="nothing", callbacks=note
        ).run()
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_edges_that_are_not_the_others_reversed_are_not_pruned(comm):
    """As in a forged file; kernels would read rows that aren't there."""
    graph = distribute(few_targets(330), comm)
    graph = replace(graph, out_edges=graph.in_edges)
    with pytest.raises(InputError, match="are not those into another: partition the graph again"):
        message_flow(graph, graph.train_mask, [1, 1, 1, 1])


@pytest.mark.parametrize("name", OWN)
def test_user_defined_layers_are_pruned_by_their_hops(comm, name):
    """The targets' rows are the same; layers that don't report hops run on the whole graph."""
    whole = few_targets(330)
    graph = distribute(whole, comm)
    targets = graph.train_mask
    model = Stack(5, 5, 5, 4, OWN[name], activation="relu")
    flow = message_flow(graph, targets, model.hops())
    pruned = [step is not None for step in flow]
    others = {"silent": [False] * 4, "one of each": [False, False, True, True]}
    assert pruned == others.get(name, [False, True, True, True])
    x = local(graph, whole.features).requires_grad_()
    found = model(graph, x, flow)
    found = found if pruned[-1] else found[targets]
    found.square().sum().backward()
    found_grad, x.grad = collect(graph, x.grad), None
    expected = model(graph, x)[targets]
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_grad, collect(graph, x.grad))


def left(whole: Whole, hidden: np.ndarray) -> Whole:
    kept = ~hidden
    return replace(
        whole, source=whole.source[kept], target=whole.target[kept], weight=whole.weight[kept]
    )


def hide(comm, whole: Whole, hides):
    """Return the part without the edges for which `hides(source ids, target ids)` is true."""
    graph = distribute(whole, comm)
    places = graph.derived(FindPlaces())
    ends = graph.derived(EdgeEnds())
    ids = [places.look_up(end, graph.node_ids.numpy()) for end in ends]
    return without_edges(graph, torch.from_numpy(hides(*ids)))


def by_pair(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Decide by pair of nodes: the same for parallel edges and for both directions."""
    low, high = np.sort([source, target], axis=0)
    return (low * 7 + high * 3) % 4 == 0


def by_direction(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return (source + target * 2) % 4 == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_hidden_edges_act_as_if_absent(comm, symmetric):
    whole = random_graph(29, 140, seed=2, symmetric=symmetric, weighted=True)
    hides = by_pair if symmetric else by_direction
    hidden = hides(whole.source, whole.target)
    rows = []
    for graph in (hide(comm, whole, hides), distribute(left(whole, hidden), comm)):
        assert graph.num_edges == (~hidden).sum() and graph.symmetric == symmetric
        torch.manual_seed(0)
        layer = nn.GCNConv(5, 4)
        x = graph.features.clone().requires_grad_()
        out = layer(graph, x)
        (out * out.detach().cos()).sum().backward()
        rows.append((collect(graph, out), collect(graph, x.grad)))
    for found, right in zip(*rows, strict=True):
        torch.testing.assert_close(found, right)


def test_hiding_one_direction_of_an_edge_is_refused(comm):
    whole = random_graph(29, 140, seed=2, symmetric=True)
    with pytest.raises(InputError, match="the two directions of an undirected edge"):
        hide(comm, whole, by_direction)

    def first_of_parallel(source, target):
        _, first, back, counts = np.unique(source * 29 + target, True, True, True)
        return (counts[back] > 1) & np.isin(np.arange(len(source)), first)

    with pytest.raises(
        InputError, match="several edges between the same two nodes are in different splits"
    ):
        hide(comm, random_graph(29, 140, seed=2), first_of_parallel)
