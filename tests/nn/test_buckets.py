"""Gradients summed during backward, compared with one message after it."""

from __future__ import annotations

import copy

import pytest
import torch

from hpcgnn.comm.device_sums import DeviceSums
from hpcgnn.nn.buckets import GradientSums
from hpcgnn.nn.gradients import add_up
from hpcgnn.nn.linear import Embedding
from tests.comm.transport.test_transport import Sluggish
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi
WIDE = 300  # a layer of this width exceeds a bucket


class Deep(torch.nn.Module):
    """Layers of at most a bucket; one used only on rank 0, one unused; rows of each rank."""

    def __init__(self, graph) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rows = Embedding(graph, WIDE, 0)
        self.unused = torch.nn.Linear(3, 3)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDE, WIDE) for _ in range(3))
        self.precise = torch.nn.Parameter(torch.ones(WIDE, dtype=torch.float64))
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.sometimes = torch.nn.Linear(WIDE, WIDE)

    def forward(self, graph, rank):
        x = self.rows(graph)
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.fixed
        x = self.sometimes(x) if rank == 0 else x
        return (x * self.precise).square().sum() / 100


@pytest.fixture
def graph(comm):
    return distribute(random_graph(40, 100), comm)


def sluggish(model, comm, *delays) -> tuple[GradientSums, Sluggish]:
    """Sums of gradients that are copied to the host as from a GPU, each copy in its own time."""
    copier = Sluggish(delays)
    return GradientSums(list(model.parameters()), comm, copier=copier), copier


def gradients(model) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_buckets_give_the_same_bits_as_one_message(comm, graph):
    model = Deep(graph)
    other = copy.deepcopy(model)
    parameters = list(model.parameters())
    sums, begun = GradientSums(parameters, comm), []
    if comm.size > 1:
        running = comm.background()._begun
        model.layers[0].weight.register_hook(lambda grad: begun.append(len(running)))
    for _ in range(2):
        for one in (model, other):
            one.zero_grad()
        with sums.overlapping():
            model(graph, comm.rank).backward()
        assert sums.finish()
        other(graph, comm.rank).backward()
        assert add_up(list(other.parameters()), comm)
        assert all(map(torch.equal, gradients(model), gradients(other)))
    # Rank 0 has sent three layers before it reaches the first; the others lack one and wait.
    assert comm.size == 1 or begun == ([3, 3] if comm.rank == 0 else [0, 0])


@pytest.mark.parametrize("delays", [(1,), (2,), (5, 1, 9), (40,)])
def test_gradients_of_a_gpu_are_sent_once_they_have_landed(comm, graph, delays):
    """The host waits at the end alone, and never for those that have landed by then."""
    model, other = Deep(graph), Deep(graph)
    (sums, copier), begun = sluggish(model, comm, *delays), []
    if comm.size > 1:
        running = comm.background()._begun
        model.layers[0].weight.register_hook(lambda grad: begun.append(len(running)))
    for _ in range(2):
        for one in (model, other):
            one.zero_grad()
        with sums.overlapping():
            model(graph, comm.rank).backward()
            assert copier.waits == 0 or len(begun) > 1
        assert sums.finish()
        other(graph, comm.rank).backward()
        assert add_up(list(other.parameters()), comm)
        assert all(map(torch.equal, gradients(model), gradients(other)))
    if comm.size == 1:
        assert copier.late == copier.waits == 0
    elif comm.rank == 0 and len(delays) == 1:  # it reaches all layers; asked for each parameter
        assert begun == ([3, 3] if delays[0] <= 2 else [0, 0])
        assert (copier.waits == 0) == (delays[0] == 1)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_parameters_may_be_frozen_and_learned_again_between_steps(comm, graph, on_gpu):
    model, other = Deep(graph), Deep(graph)
    sums = GradientSums(list(model.parameters()), comm)
    sums = sluggish(model, comm, 1)[0] if on_gpu else sums
    for name in ("layers.1.weight", "fixed", "precise", "layers.1.weight"):
        for one in (model, other):
            one.zero_grad()
            changed = one.get_parameter(name)
            changed.requires_grad_(not changed.requires_grad)
        with sums.overlapping():
            model(graph, comm.rank).backward()
        assert sums.finish()
        other(graph, comm.rank).backward()
        assert add_up(list(other.parameters()), comm)
        for one, same in zip(model.parameters(), other.parameters(), strict=True):
            assert (one.grad is None) == (same.grad is None) == (not one.requires_grad)
            assert one.grad is None or torch.equal(one.grad, same.grad)


@pytest.mark.parametrize("name", ["layers.1.weight", "rows.weight"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_non_finite_gradient_on_one_rank_is_seen_by_all(comm, graph, name, on_gpu):
    model = Deep(graph)
    sums, last = GradientSums(list(model.parameters()), comm), comm.size - 1
    sums = sluggish(model, comm, 3)[0] if on_gpu else sums
    if comm.rank == last:
        model.get_parameter(name).register_hook(lambda grad: grad * torch.inf)
    with sums.overlapping():
        model(graph, comm.rank).backward()
    own = [grad.clone() for grad in gradients(model)]
    wrong = comm.allreduce(int(not all(grad.isfinite().all() for grad in own)), "max")
    assert wrong or name == "rows.weight"
    assert sums.finish() != bool(wrong)
    if wrong:
        kept = [p.grad for p in model.parameters() if p.grad is not None and p.grad.any()]
        assert all(
            any(torch.equal(grad, one) for one in own) for grad in kept if grad.isfinite().all()
        )


@pytest.mark.parametrize("on_gpu", [False, True])
def test_two_passes_and_errors_fall_back_to_one_message(comm, graph, on_gpu):
    """So do the steps after them, which would send their gradients twice again."""
    model, wanted = Deep(graph), Deep(graph)
    sums = GradientSums(list(model.parameters()), comm)
    sums = sluggish(model, comm, 3)[0] if on_gpu else sums
    with pytest.raises(ValueError, match="stop"), sums.overlapping():
        model(graph, comm.rank).backward()
        raise ValueError("stop")
    model.zero_grad()
    with sums.overlapping():
        for _ in range(2):
            model(graph, comm.rank).backward()
            wanted(graph, comm.rank).backward()
    assert sums.finish() and add_up(list(wanted.parameters()), comm)
    assert all(map(torch.equal, gradients(model), gradients(wanted)))
    with sums.overlapping():
        assert comm.size == 1 or not comm.background()._begun
        assert sums._next is None


@pytest.fixture
def device_sums(comm, monkeypatch):
    """Sums by Gloo, which takes the place of NCCL on the host."""
    if comm.size == 1:
        pytest.skip("one rank has nothing to sum")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made = DeviceSums.start(comm, torch.device("cpu"), "gloo")
    yield made
    made.close()


def test_sums_on_the_device_are_those_of_mpi_and_the_same_in_every_run(comm, graph, device_sums):
    model = Deep(graph)
    model(graph, comm.rank).backward()
    wanted, again = copy.deepcopy(model), copy.deepcopy(model)
    for one in (wanted, again):
        for parameter, given in zip(one.parameters(), model.parameters(), strict=True):
            parameter.grad = None if given.grad is None else given.grad.clone()
    assert add_up(list(wanted.parameters()), comm)
    assert all(add_up(list(one.parameters()), comm, device_sums) for one in (model, again))
    for own, theirs, twice in zip(*map(gradients, (model, wanted, again)), strict=True):
        assert torch.equal(own, twice)
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)
    # Rows of the embedding stay on their ranks; all else is the same to the bit on all of them.
    facts = [
        p.grad.double().sum().item()
        for n, p in model.named_parameters()
        if n != "rows.weight" and p.grad is not None
    ]
    assert len(set(map(tuple, comm.allgather(facts)))) == 1


def test_on_the_device_a_gradient_that_is_not_finite_changes_none(comm, graph, device_sums):
    model = Deep(graph)
    model(graph, comm.rank).backward()
    if comm.rank == comm.size - 1:
        model.rows.weight.grad[:] = torch.inf
    before = [grad.clone() for grad in gradients(model) if grad.any()]
    assert not add_up(list(model.parameters()), comm, device_sums)
    after = [grad for grad in gradients(model) if grad.any()]
    assert all(map(torch.equal, before, after))
