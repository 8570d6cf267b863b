"""Messages in plain torch, streamed and recomputed, compared with dense autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.nn import MessagePassing
from hpcgnn.sar.messages import edge_features
from tests.graphs import Whole, collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi


class EdgeNetwork(MessagePassing):
    """Messages conditioned on edge features (Gilmer et al. 2017)."""

    def __init__(self) -> None:
        super().__init__("mean", piece=16)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)
        )

    def message(self, x_src, x_dst, edge):
        return x_src * self.net(edge.features) + x_dst


class Several(MessagePassing):
    """Several reductions of one message (Corso et al. 2020)."""

    def __init__(self) -> None:
        super().__init__(["mean", "max", "min", "std", "sum", "var"], piece=7)
        self.pre, self.post = torch.nn.Linear(10, 4), torch.nn.Linear(24 + 5, 3)

    def message(self, x_src, x_dst, edge):
        return self.pre(torch.cat([x_src, x_dst], dim=1))

    def update(self, reduced, x):
        return self.post(torch.cat([reduced, x], dim=1))


class DotProduct(MessagePassing):
    """Attention by scaled inner products, two heads (Shi et al. 2021)."""

    def __init__(self) -> None:
        super().__init__("softmax", piece=16)
        self.key, self.query = torch.nn.Linear(5, 8), torch.nn.Linear(5, 8)
        self.value = torch.nn.Linear(5, 8)

    def message(self, x_src, x_dst, edge):
        key, query = self.key(x_src).view(-1, 2, 4), self.query(x_dst).view(-1, 2, 4)
        logit = (key * query).sum(-1, keepdim=True) / 2
        return self.value(x_src).view(-1, 2, 4), logit


class Isomorphism(MessagePassing):
    """Sum and an MLP (Xu et al. 2019)."""

    def __init__(self) -> None:
        super().__init__("sum")
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)
        )

    def update(self, reduced, x):
        return self.mlp(reduced + x)


def reference(layer: MessagePassing, whole: Whole, x: Tensor, features: Tensor | None) -> Tensor:
    """Run the layer on one process: all messages at once, reduced node by node with torch."""
    from hpcgnn.sar.message_pass import EdgePiece

    source, target = torch.from_numpy(whole.source), torch.from_numpy(whole.target)
    result = layer.message(x[source], x[target], EdgePiece(None, None, features))
    value, logit = result if isinstance(result, tuple) else (result, None)
    count = len(source)
    logit = None if logit is None else logit.expand_as(value).reshape(count, -1)
    value = value.reshape(count, -1)
    rows = []
    for node in range(whole.num_nodes):
        here = target == node
        m = value[here]
        columns = []
        for name in layer.aggr:
            if name == "std":
                base = m.var(0, correction=0) if len(m) else m.new_zeros(m.shape[1])
                columns.append((base.clamp(min=0) + 1e-5).sqrt())
            elif len(m) == 0:
                columns.append(m.new_zeros(m.shape[1]))
            elif name == "softmax":
                columns.append((torch.softmax(logit[here], 0) * m).sum(0))
            elif name == "var":
                columns.append(m.var(0, correction=0))
            else:
                columns.append(
                    {"sum": m.sum, "mean": m.mean, "max": m.amax, "min": m.amin}[name](0)
                )
        rows.append(torch.cat(columns))
    return layer.update(torch.stack(rows), x)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(9, 24), (60, 300)])
@pytest.mark.parametrize("kind", [EdgeNetwork, Several, DotProduct, Isomorphism])
def test_gradients_agree_with_dense_autograd(comm, kind, num_nodes, num_edges):
    torch.manual_seed(3)
    layer = kind().double()
    whole = random_graph(num_nodes, num_edges, edge_width=3 if kind is EdgeNetwork else 0)
    x = torch.from_numpy(whole.features).double().requires_grad_()
    features = None
    if whole.edge_features is not None:
        features = torch.from_numpy(whole.edge_features).double().requires_grad_()
    expected = reference(layer, whole, x, features)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    grads = torch.autograd.grad(
        (expected * weights).sum(), [x, *layer.parameters()], retain_graph=True
    )

    graph = distribute(whole, comm, halo_buffer=4096)
    for graph.execution.mode in ("sar", "sa", "oneshot"):
        layer.zero_grad()
        x_local = local(graph, x.detach()).requires_grad_()
        mine = edge_features(graph)
        mine = None if mine is None else mine.double().requires_grad_()
        y = layer(graph, x_local, mine)
        (y * local(graph, weights)).sum().backward()
        found = collect(graph, torch.cat([y, x_local.grad], dim=1))
        torch.testing.assert_close(found[:, : y.shape[1]], expected.detach())
        torch.testing.assert_close(found[:, y.shape[1] :], grads[0])
        for (name, parameter), grad in zip(layer.named_parameters(), grads[1:], strict=True):
            own = torch.zeros_like(grad) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(comm.allreduce(own), grad, msg=name)
        if mine is not None:
            (grad,) = torch.autograd.grad((expected * weights).sum(), [features], retain_graph=True)
            order = torch.from_numpy(whole.edge_features)[:, 0].argsort()
            pieces = comm.allgather((mine.detach()[:, 0].numpy(), mine.grad.numpy()))
            keys = torch.cat([torch.from_numpy(key) for key, _ in pieces])
            rows = torch.cat([torch.from_numpy(rows) for _, rows in pieces])[keys.argsort()]
            torch.testing.assert_close(rows, grad[order])


@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
@pytest.mark.parametrize("nodes", [9, 250])  # with 250, several messages per pair of ranks
def test_dropout_inside_messages_is_the_same_in_backward(comm, mode, nodes):
    """A mask drawn in `message` must be drawn again: the gradient is then the mask itself."""

    class Masked(MessagePassing):
        def message(self, x_src, x_dst, edge):
            return torch.nn.functional.dropout(x_src, 0.5)

    whole = random_graph(nodes, 5 * nodes)
    graph = distribute(whole, comm, halo_buffer=4096)
    graph.execution.mode = mode
    x = local(graph, torch.rand(nodes, 5) + 1).requires_grad_()
    y = Masked("sum", piece=5)(graph, x)
    y.sum().backward()
    total = comm.allreduce(float(y.detach().double().sum()))
    through = comm.allreduce(float((x.grad * x.detach()).double().sum()))
    assert total == pytest.approx(through, rel=1e-5)
    assert total > 0


@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
@pytest.mark.parametrize("aggr", ["max", "min"])
def test_every_maximum_is_recomputed_in_backward(comm, mode, aggr):
    """The bias inside a maximum of products gets 1 from every node with in-edges."""

    class Product(MessagePassing):
        def __init__(self):
            super().__init__(aggr)
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(2 * 67, 37)

        def message(self, x_src, x_dst, edge):
            return self.linear(torch.cat([x_src, x_dst], dim=1))

    whole = random_graph(700, 20_000, width=67)
    graph = distribute(whole, comm, halo_buffer=1 << 14)
    graph.execution.mode = mode
    layer = Product()
    layer(graph, graph.features).sum().backward()
    bias = layer.linear.bias.grad.numpy().astype(float)
    reached = len(set(whole.target.tolist()))
    for column in bias:
        assert comm.allreduce(float(column)) == pytest.approx(reached, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "logit"), [((5,), ()), ((1, 5), (1,)), ((2, 3), (2,)), ((2, 3), (2, 1))]
)
def test_logits_per_edge_head_and_entry(comm, value, logit):
    """A smaller logit counts for all entries of its edge or head."""

    class Weighted(MessagePassing):
        def __init__(self, full):
            super().__init__("softmax", piece=7)
            self.full = full

        def message(self, x_src, x_dst, edge):
            rows = len(x_src)
            values = x_src[:, : torch.Size(value).numel()].reshape(rows, *value)
            logits = x_src[:, : torch.Size(logit).numel()].reshape(rows, *logit)
            if self.full:
                spread = logits.reshape(*logits.shape, *[1] * (values.dim() - logits.dim()))
                logits = spread.expand_as(values)
            return values, logits

    graph = distribute(random_graph(60, 300, width=6), comm, halo_buffer=4096)
    small, full = (Weighted(full)(graph, graph.features) for full in (False, True))
    assert small.isfinite().all() and torch.equal(small, full)


def test_logits_of_another_shape_are_refused(comm):
    class Wrong(MessagePassing):
        def message(self, x_src, x_dst, edge):
            return x_src, x_src[:, :3]

    if comm.size > 1:
        pytest.skip("an error amid messages is meant to end the job")
    graph = distribute(random_graph(60, 300), comm)
    with pytest.raises(InputError, match=r"logits' shape .*\[\d+, 3\] and \[\d+, 5\]"):
        Wrong("softmax")(graph, graph.features)
