"""Normalisation over the ranks compared with one process."""

from __future__ import annotations

import copy

import pytest
import torch

from hpcgnn import nn
from hpcgnn.models.stack import Stack
from hpcgnn.nn import norm as norm_module
from hpcgnn.nn.norm import NORMS, convert_norms
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
COUNT, WIDTH = 23, 5


@pytest.fixture
def graph(comm):
    return distribute(random_graph(COUNT, 40), comm)


def randomised(norm: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in norm.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return norm


def reference(kind: str) -> torch.nn.Module:
    if kind == "batch":
        return torch.nn.BatchNorm1d(WIDTH)
    if kind == "layer":
        return torch.nn.LayerNorm(WIDTH)
    return pytest.importorskip("torch_geometric.nn").GraphNorm(WIDTH)


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        *(("batch", 0.0), ("layer", 0.0), ("batch", 1000.0)),
        *(pytest.param("graph", offset, marks=pytest.mark.slow) for offset in (0.0, 1000.0)),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_norms_agree_with_dense_computation(comm, graph, kind, offset, on_gpu, monkeypatch):
    """Also far from 0, where a variance from sums of squares would be noise; as on GPUs too."""
    monkeypatch.setattr(norm_module, "_on_gpu", lambda x: on_gpu)
    theirs = randomised(reference(kind)).double()
    ours = NORMS[kind](WIDTH)
    ours.load_state_dict(
        {
            name: value.float()
            for name, value in theirs.state_dict().items()
            if name in ours.state_dict()
        }
    )
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, WIDTH, generator=generator) + offset
    weights = torch.randn(COUNT, WIDTH, generator=generator)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if not offset else {"rtol": 1e-3, "atol": 2e-4}
    for _ in range(2):  # running statistics are updated twice
        x_theirs = x.double().requires_grad_()
        y_theirs = theirs(x_theirs)
        theirs.zero_grad()
        (y_theirs * weights).sum().backward()
        x_ours = local(graph, x).requires_grad_()
        y_ours = ours(graph, x_ours)
        ours.zero_grad()
        (y_ours * local(graph, weights)).sum().backward()
    found = collect(graph, torch.cat([y_ours, x_ours.grad], dim=1)).double()
    torch.testing.assert_close(found[:, :WIDTH], y_theirs.detach(), **tolerance)
    torch.testing.assert_close(found[:, WIDTH:], x_theirs.grad, **tolerance)
    for name, parameter in ours.named_parameters():
        total = comm.allreduce(parameter.grad).double()
        torch.testing.assert_close(total, theirs.get_parameter(name).grad, **tolerance)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), theirs.get_buffer(name), **tolerance)
    ours.eval(), theirs.eval()
    y_ours = ours(graph, local(graph, x))
    torch.testing.assert_close(
        collect(graph, y_ours).double(), theirs(x.double()).detach(), **tolerance
    )


@pytest.mark.parametrize("kind", ["batch", "graph"])
def test_the_gradient_of_weights_is_exact_where_its_terms_cancel(comm, kind):
    """The mean it subtracts isn't rounded: that would add the rounding times the sum of g."""
    graph = distribute(random_graph(1024, 0), comm)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1024, WIDTH, generator=generator) + 1000
    exact = x.double() - x.double().mean(0)
    grad = (1 + 2**-12 * exact.sign()).float()
    norm = NORMS[kind](WIDTH)
    norm(graph, local(graph, x)).backward(local(graph, grad))
    expected = (exact * grad.double()).sum(0) / (exact.square().mean(0) + norm.eps).sqrt()
    found = comm.allreduce(norm.weight.grad.double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_running_statistics_are_the_same_on_all_ranks(comm, graph):
    norm = nn.BatchNorm(WIDTH)
    norm(graph, local(graph, torch.randn(COUNT, WIDTH, generator=torch.manual_seed(0))))
    for buffer in norm.buffers():
        assert all((rows == buffer.numpy()).all() for rows in comm.allgather(buffer.numpy()))


def test_a_copy_of_a_norm_covers_all_ranks_too(comm, graph):
    """As made for a moving average: a copy has its own numbers and the same communicator."""
    norm = randomised(convert_norms(torch.nn.BatchNorm1d(WIDTH), graph))
    x = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0))
    norm(local(graph, x))
    copied = copy.deepcopy(norm)
    assert copied.comm is comm
    torch.testing.assert_close(copied.state_dict(), norm.state_dict(), rtol=0, atol=0)
    before = norm.running_mean.clone()
    assert torch.equal(copied(local(graph, 2 * x)), norm(local(graph, 2 * x)))
    with torch.no_grad():
        copied.weight.add_(1)
    copied(local(graph, x + 5))
    assert not torch.equal(before, norm.running_mean)
    assert not torch.equal(copied.running_mean, norm.running_mean)
    assert not torch.equal(copied.weight, norm.weight)


def test_one_node_and_constant_columns_stay_finite(comm):
    graph = distribute(random_graph(1, 0), comm)
    for kind in NORMS:
        x = torch.full((graph.num_local_nodes, WIDTH), 3.0, requires_grad=True)
        y = NORMS[kind](WIDTH)(graph, x)
        y.sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("conv", ["gcn", "sage", "gin", "gat", "gatv2", "sgc"])
@pytest.mark.parametrize("norm", ["batch", "graph"])
def test_a_bias_removed_by_the_norm_has_no_gradient(graph, norm, conv):
    """Exactly none, in a copy too; it has one where a share of the mean is kept."""
    mlp = torch.nn.Linear
    makers = {
        "gcn": lambda a, b, i: nn.GCNConv(a, b),
        "sage": lambda a, b, i: nn.SAGEConv(a, b),
        "gin": lambda a, b, i: nn.GINConv(torch.nn.Sequential(mlp(a, b), mlp(b, b))),
        "gat": lambda a, b, i: nn.GATConv(a, b),
        "gatv2": lambda a, b, i: nn.GATv2Conv(a, b),
        "sgc": lambda a, b, i: nn.SGConv(a, b, 2),
    }
    stack = copy.deepcopy(Stack(WIDTH, 4, 3, 2, makers[conv], norm=norm, residual=True))
    first, shift = stack.convs[0], stack.residuals[0].bias
    own = getattr(first, "output_bias", getattr(first, "bias", None))
    stack(graph, graph.features).square().sum().backward()
    assert not own.grad.any() and not shift.grad.any()
    assert stack.residuals[1].bias.grad.any() or not graph.num_local_nodes
    if norm == "graph":
        stack.norms[0].mean_scale.data[0] = 0.5
        stack.zero_grad()
        stack(graph, graph.features).square().sum().backward()
        assert not own.grad[1:].any() and not shift.grad[1:].any()
        if graph.num_local_nodes:
            assert shift.grad[0] != 0


@pytest.mark.parametrize("on_gpu", [False, True])
def test_columns_without_variance_give_the_same_as_torch(comm, graph, on_gpu, monkeypatch):
    """Rounding errors are multiplied by 316; no other error is added."""
    monkeypatch.setattr(norm_module, "_on_gpu", lambda x: on_gpu)
    x = torch.full((COUNT, WIDTH), 0.7)
    x[::3, 1] = torch.nextafter(x[0, 1], torch.tensor(1.0))
    x[1::3, 2] -= 1e-6
    x[:, 3] = 0
    ours, theirs = nn.BatchNorm(WIDTH), torch.nn.BatchNorm1d(WIDTH).double()
    found = collect(graph, ours(graph, local(graph, x)).detach())
    wanted = theirs(x.double()).detach()
    rounding = 0.7 * 2**-23 / ours.eps**0.5
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=rounding)
    assert (found[:, 3] == 0).all() and found[:, 2].abs().max() > 8 * rounding
