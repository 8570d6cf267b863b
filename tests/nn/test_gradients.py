"""Sums of gradients over the ranks, in one message."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from mpi4py import MPI

import hpcgnn
from hpcgnn.errors import InputError, NumericalError
from hpcgnn.nn.buckets import GradientSums
from hpcgnn.nn.linear import Embedding
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi


class Some(torch.nn.Module):
    """Parameters used everywhere, only on rank 0, nowhere; one per rank; one not learned."""

    def __init__(self, graph) -> None:
        super().__init__()
        self.used = torch.nn.Parameter(torch.ones(2, 3))
        self.here = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(4))
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.rows = Embedding(graph, 2, 0)


@pytest.fixture
def model(comm):
    model = Some(distribute(random_graph(30, 60), comm))
    model.used.grad = torch.full((2, 3), comm.rank + 1.0)
    if comm.rank == 0:
        model.here.grad = torch.full((2,), 5.0, dtype=torch.float64)
    model.rows.weight.grad = torch.full_like(model.rows.weight, comm.rank)
    return model


@pytest.mark.parametrize("plain", [False, True])
def test_gradients_of_all_kinds_of_parameters(comm, model, plain, monkeypatch):
    sent, own = [], type(comm).allreduce
    monkeypatch.setattr(
        type(comm), "allreduce", lambda self, *a, **k: (sent.append(a), own(self, *a, **k))[1]
    )
    hpcgnn.sum_gradients(model, MPI.COMM_WORLD if plain else comm)
    assert len(sent) == (comm.size > 1)
    assert torch.equal(model.used.grad, torch.full((2, 3), comm.size * (comm.size + 1) / 2))
    assert torch.equal(model.here.grad, torch.full((2,), 5.0, dtype=torch.float64))
    assert torch.equal(model.unused.grad, torch.zeros(4)) and model.fixed.grad is None
    assert torch.equal(model.rows.weight.grad, torch.full_like(model.rows.weight, comm.rank))


@pytest.mark.parametrize("name", ["used", "rows.weight"])
def test_a_non_finite_gradient_is_named_on_all_ranks(comm, model, name):
    last = comm.size - 1
    if comm.rank == last:
        model.get_parameter(name).grad.view(-1)[0] = torch.inf
    with pytest.raises(
        NumericalError, match=rf"gradient of {name} on rank {last} is not finite: lower"
    ):
        hpcgnn.sum_gradients(model, comm)


@pytest.mark.parametrize("seeded", [True, False])
def test_a_forgotten_seed_is_found_at_the_first_call(comm, seeded, capfd):
    torch.manual_seed(0 if seeded else comm.rank)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    if seeded or comm.size == 1:
        hpcgnn.sum_gradients(model, comm)
        model[1].weight.data += comm.rank  # no longer checked
        hpcgnn.sum_gradients(model, comm)
        said = "0 (BatchNorm1d) normalises over the nodes of one rank only"
        assert capfd.readouterr().err.count(said) == (comm.rank == 0 and comm.size > 1)
        return
    for _ in range(2):
        with pytest.raises(InputError, match=r"weights: 1\.weight on rank 1 .*torch\.manual_seed"):
            hpcgnn.sum_gradients(model, comm)


def test_weights_of_another_shape_are_found(comm):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2 + (comm.rank == comm.size - 1 > 0), bias=False)
    if comm.size > 1:
        with pytest.raises(InputError, match=f"weight on rank {comm.size - 1} is not"):
            hpcgnn.sum_gradients(model, comm)


@pytest.mark.parametrize("overlapped", [False, True])
def test_sparse_gradients_are_refused_in_one_line(comm, overlapped):
    torch.manual_seed(0)
    model = torch.nn.Embedding(5, 2, sparse=True)
    sums = GradientSums(list(model.parameters()), comm)
    with pytest.raises(InputError, match=r"shape \(5, 2\) is sparse, .* with sparse=False"):
        with sums.overlapping() if overlapped else nullcontext():
            model(torch.tensor([0, 1])).sum().backward()
        if overlapped:
            sums.finish()
        else:
            hpcgnn.sum_gradients(model, comm)


def test_a_model_without_parameters_has_no_gradients(comm):
    hpcgnn.sum_gradients(torch.nn.ReLU(), comm)
