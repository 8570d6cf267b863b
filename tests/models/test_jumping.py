"""Jumping knowledge compared with torch on the outputs of all layers."""

from __future__ import annotations

import pytest
import torch

from hpcgnn.models.stack import Stack, largest, linear_of_all
from hpcgnn.nn.linear import Linear
from hpcgnn.nn.propagation import Pointwise
from tests.graphs import distribute, random_graph


def layers(count: int) -> list[torch.Tensor]:
    torch.manual_seed(count)
    return [torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def gradients(y: torch.Tensor, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    grad = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad(y, of, grad)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_jumping_cat_applies_one_linear_map(count, bias):
    h, head = layers(count), Linear(5 * count, 3, bias=bias).double()
    expected = head(torch.cat(h, dim=-1))
    found = linear_of_all(iter(h), head)
    torch.testing.assert_close(found, expected)
    of = (*h, *head.parameters())
    torch.testing.assert_close(gradients(found, *of), gradients(expected, *of))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_jumping_max_takes_the_largest_entries(count):
    h = layers(count)
    expected, found = torch.stack(h).amax(dim=0), largest(iter(h))
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradients(found, *h), gradients(expected, *h))


def test_ties_go_to_the_earliest_layer():
    h = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    first, *others = gradients(largest(h), *h)
    assert first.tolist() == [0, 1] and not any(grad.any() for grad in others)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("jumping", ["cat", "max"])
def test_jumping_before_a_convolution(comm, jumping, layers):
    """The last convolution reads all hidden layers, or the input where there are none."""
    graph = distribute(random_graph(20, 50), comm)
    model = Stack(5, 6, 3, layers, lambda a, b, layer: Pointwise(a, b), jumping=jumping)
    x, hidden = graph.features, []
    for conv in model.convs[:-1]:
        x = conv(graph, x).relu()
        hidden.append(x)
    if hidden:
        x = torch.cat(hidden, dim=1) if jumping == "cat" else torch.stack(hidden).amax(dim=0)
    found = model(graph, graph.features)
    torch.testing.assert_close(found, model.convs[-1](graph, x))
    torch.testing.assert_close(model.embed(graph, graph.features), x)
