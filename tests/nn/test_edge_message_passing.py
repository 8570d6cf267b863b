"""Edge and node states through several layers, compared with dense autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.nn import EdgeMessagePassing, Linear
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.messages import edge_features
from tests.graphs import Whole, collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
MODES = ("sar", "sa", "oneshot")


def mlp(inputs: int, outputs: int) -> torch.nn.Sequential:
    hidden = [torch.nn.Linear(inputs, 6), torch.nn.ReLU(), torch.nn.Linear(6, outputs)]
    return torch.nn.Sequential(*hidden, torch.nn.LayerNorm(outputs))


class Processor(EdgeMessagePassing):
    """A step of a MeshGraphNet: the residual comes after the sum (Pfaff et al. 2021)."""

    def __init__(self, aggr="sum"):
        super().__init__(aggr, piece=16)
        self.edge_mlp, self.node_mlp = mlp(5 + 5 + 4, 4), mlp(5 + 4 * len(self.aggr), 5)

    def edge_update(self, e, x_src, x_dst, edge):
        change = self.edge_mlp(torch.cat([e, x_src, x_dst], dim=1))
        return e + change, change

    def update(self, reduced, x):
        return x + self.node_mlp(torch.cat([x, reduced], dim=1))


class Widening(EdgeMessagePassing):
    """A step with other widths, several reductions, and the graph's features besides the states."""

    def __init__(self):
        super().__init__(["mean", "max"], piece=7)
        self.edge, self.node = torch.nn.Linear(4 + 5 + 5 + 3, 2), Linear(2 * 2 + 5, 5)

    def edge_update(self, e, x_src, x_dst, edge):
        return torch.tanh(self.edge(torch.cat([e, x_src, x_dst, edge.features], dim=1)))

    def update(self, reduced, x):
        return self.node(torch.cat([reduced, x], dim=1))


class Network(torch.nn.Module):
    """Encode, process, decode: nodes and edges."""

    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Linear(3, 4)
        self.steps = torch.nn.ModuleList([Processor(), Processor("mean"), Widening()])
        self.decode = torch.nn.Linear(5, 2)

    def forward(self, layer, x, features):
        """Return the network's output; `layer(step, x, e)` runs a step."""
        e = self.encode(features)
        for step in self.steps:
            x, e = layer(step, x, e)
        return self.decode(x), e


def dense_step(whole: Whole):
    """Run a step on one process, with all edges at once, reduced node by node."""
    source, target = torch.from_numpy(whole.source), torch.from_numpy(whole.target)
    features = torch.from_numpy(whole.edge_features)

    def run(step: EdgeMessagePassing, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        found = step.edge_update(
            e, x[source], x[target], EdgePiece(None, None, features.to(e.dtype))
        )
        state, message = found if isinstance(found, tuple) else (found, found)
        rows = []
        for node in range(whole.num_nodes):
            m = message[target == node]
            zero = m.new_zeros(m.shape[1])
            kinds = {"sum": m.sum, "mean": m.mean, "max": m.amax}
            rows.append(torch.cat([kinds[a](0) if len(m) else zero for a in step.aggr]))
        return step.update(torch.stack(rows), x), state

    return run


def by_edge(graph, rows: Tensor, mine: Tensor) -> Tensor:
    """Return the edge rows of all ranks, in the order of their first feature."""
    pieces = graph.comm.allgather((mine[:, 0].detach().numpy(), rows.detach().numpy()))
    keys = torch.cat([torch.from_numpy(key) for key, _ in pieces])
    return torch.cat([torch.from_numpy(found) for _, found in pieces])[keys.argsort()]


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(7, 0), (9, 24), (60, 300)])
def test_gradients_of_nodes_edges_and_parameters_through_several_layers(comm, num_nodes, num_edges):
    torch.manual_seed(3)
    network = Network().double()
    whole = random_graph(num_nodes, num_edges, edge_width=3)
    x = torch.from_numpy(whole.features).double().requires_grad_()
    features = torch.from_numpy(whole.edge_features).double().requires_grad_()
    y, e = network(dense_step(whole), x, features)
    weights, edge_weights = torch.randn_like(y), torch.randn_like(e)
    loss = (y * weights).sum() + (e * edge_weights).sum()
    expected = torch.autograd.grad(loss, [x, features, *network.parameters()])

    order = torch.from_numpy(whole.edge_features)[:, 0].argsort()
    graph = distribute(whole, comm, halo_buffer=4096)
    for graph.execution.mode in MODES:
        network.zero_grad()
        x_local = local(graph, x.detach()).requires_grad_()
        mine = edge_features(graph)
        mine = torch.zeros(0, 3) if mine is None else mine
        mine = mine.double().requires_grad_()
        found_y, found_e = network(lambda step, x, e: step(graph, x, e), x_local, mine)
        place = {float(key): i for i, key in enumerate(whole.edge_features[:, 0])}
        own = edge_weights[[place[float(key)] for key in mine[:, 0].detach().float()]]
        ((found_y * local(graph, weights)).sum() + (found_e * own).sum()).backward()
        assert graph.execution.mode != "sar" or graph.ring.peak_bytes <= 4096
        torch.testing.assert_close(collect(graph, found_y), y.detach())
        torch.testing.assert_close(collect(graph, x_local.grad), expected[0])
        torch.testing.assert_close(by_edge(graph, found_e, mine), e.detach()[order])
        torch.testing.assert_close(by_edge(graph, mine.grad, mine), expected[1][order])
        for (name, parameter), grad in zip(network.named_parameters(), expected[2:], strict=True):
            found = torch.zeros_like(grad) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(comm.allreduce(found), grad, msg=name)


def test_a_loss_on_edge_states_only(comm):
    """Nodes get no gradient from it; a rank may have no edges at all."""
    torch.manual_seed(0)
    whole = random_graph(30, 100, edge_width=4)
    graph = distribute(whole, comm)
    step, x = Processor(), graph.features.clone().requires_grad_()
    e = edge_features(graph)
    e = torch.zeros(0, 4) if e is None else e
    step(graph, x, e)[1].square().sum().backward()
    reference = torch.from_numpy(whole.features).requires_grad_()
    run = dense_step(whole)
    states = run(step, reference, torch.from_numpy(whole.edge_features))[1]
    (expected,) = torch.autograd.grad(states.square().sum(), reference)
    torch.testing.assert_close(collect(graph, x.grad), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_only_local_rows_are_kept_for_backward(comm, mode):
    """In mode sar a layer keeps the local nodes' rows and the local edges' states: 1 / P of all."""

    class Summed(Processor):
        def update(self, reduced, x):
            return reduced

    graph = distribute(random_graph(200, 2000, edge_width=4), comm, mode=mode)
    e = edge_features(graph)
    e = (torch.zeros(0, 4) if e is None else e).requires_grad_()
    x, step, kept = graph.features.clone().requires_grad_(), Summed(), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(graph, x, e)
    blocks, nodes = graph.in_edges.blocks, graph.num_local_nodes
    remote = sum(block.num_columns for block in blocks if block.peer != comm.rank)
    parameters = {parameter.data_ptr() for parameter in step.parameters()}
    numbers = sum(size for place, size in kept.items() if place not in parameters)
    own = 5 * nodes + nodes + 4 * len(e)  # rows, the sum's scale, states
    assert numbers == own + (0 if mode == "sar" else 5 * remote)


def test_states_of_another_number_of_edges_are_refused(comm):
    graph = distribute(random_graph(30, 90), comm)
    edges = sum(block.columns.shape[0] for block in graph.in_edges.blocks)
    for wrong in (torch.ones(edges + 1, 4), torch.ones(edges), None):
        with pytest.raises(InputError, match="edge states: "):
            Processor()(graph, graph.features, wrong)

    class Short(EdgeMessagePassing):
        def edge_update(self, e, x_src, x_dst, edge):
            return e[:, 0]

    if comm.size == 1:
        with pytest.raises(InputError, match="edge_update: give a row for each of these 90 edges"):
            Short()(graph, graph.features, torch.ones(edges, 4))
