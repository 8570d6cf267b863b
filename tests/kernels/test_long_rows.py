"""Rows with very many edges, in float32: their sums neither stop growing nor drift."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.kernels.block import Block

COUNT, HEADS, CHANNELS = 200_000, 2, 3
WIDTH = HEADS * CHANNELS
LIMIT = 1e-5


def hub(count: int, columns: int, **edges: torch.Tensor) -> Block:
    """Return one row with `count` edges from columns 0, 1, ..., repeated."""
    column = torch.arange(count, dtype=torch.int32) % columns
    return Block(0, columns, None, torch.tensor([0]), torch.tensor([count]), column, **edges)


def spokes(count: int, **edges: torch.Tensor) -> Block:
    """Return `count` rows with one edge each, all from column 0."""
    begin = torch.arange(count)
    return Block(0, 1, None, begin, begin + 1, torch.zeros(count, dtype=torch.int32), **edges)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found.double() / expected - 1).abs().max()) < LIMIT


def test_forty_million_ones_add_up():
    out = torch.zeros(1, 1)
    kernels.spmm(hub(40_000_000, 1000), torch.ones(1000, 1), out)
    assert out.item() == 40_000_000


@pytest.mark.parametrize("width", [1, 5, 40])
def test_sums_of_constants_do_not_drift(width):
    """Equal numbers round in the same direction every time."""
    x, weight = torch.full((7, width), 0.1), torch.full((COUNT,), 0.7)
    out = torch.zeros(1, width)
    kernels.spmm(hub(COUNT, 7, weight=weight), x, out)
    same(out, COUNT * 0.1 * 0.7 * torch.ones(1, width))

    best, share, grad = torch.ones(7, width), torch.full((7, width), 0.1), torch.zeros(1, width)
    kernels.spmm_max_backward(hub(COUNT, 7), best, share, torch.ones(1, width), grad)
    same(grad, COUNT * 0.1 * torch.ones(1, width))


def attention(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a hub's attention, and gradients of a source and of a destination of all edges."""
    features = torch.full((COUNT, 1), 0.3)
    z, scores = torch.full((7, WIDTH), 0.1, dtype=dtype), torch.full((7, HEADS), 0.3, dtype=dtype)
    vector = torch.full((HEADS, 1), 0.7, dtype=dtype)
    softmax = kernels.RunningSoftmax.zeros(1, HEADS, WIDTH, dtype=dtype, device=z.device)
    block, scoring = hub(COUNT, 7, features=features), kernels.Scoring(0.2, edge_weight=vector)
    kernels.gat_forward(block, kernels.Sources(z, scores), scores[:1], softmax, scoring)
    found = {"row_sum": softmax.row_sum, "out": softmax.out}
    for name, reverse in (("source", block), ("destination", spokes(COUNT, features=features))):
        rows, columns = reverse.num_rows, reverse.num_columns

        def filled(count: int, width: int, value: float) -> torch.Tensor:
            return torch.full((count, width), value, dtype=dtype)

        grads = (
            filled(rows, WIDTH, 0),
            filled(rows, HEADS, 0),
            filled(columns, HEADS, 0),
            filled(HEADS, 1, 0),
        )
        destinations = kernels.Destinations(
            g=filled(columns, WIDTH, 0.3),
            t=filled(columns, HEADS, 0.3),
            lse=filled(columns, HEADS, 0.2),
            d=filled(columns, HEADS, 0.1),
        )
        sources = kernels.Sources(filled(rows, WIDTH, 0.2), filled(rows, HEADS, 0.3))
        gradients = kernels.GATGradients(*grads)
        kernels.gat_backward(reverse, destinations, sources, gradients, scoring)
        found |= {f"{name} {i}": grad for i, grad in enumerate(grads)}
    return found


def gatv2(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    features = torch.full((COUNT, 1), 0.3)
    found = {}
    blocks = {
        "hub": (hub(COUNT, 7, features=features), 1),
        "spokes": (spokes(COUNT, features=features), COUNT),
    }
    for name, (block, rows) in blocks.items():
        columns = block.num_columns
        left, right = torch.full((columns, WIDTH), 0.1), torch.full((rows, WIDTH), 0.2)
        left, right = left.to(dtype), right.to(dtype)
        att = torch.full((HEADS, CHANNELS), 0.7, dtype=dtype)
        matrix = torch.full((1, WIDTH), 0.3, dtype=dtype)
        softmax = kernels.RunningSoftmax.zeros(rows, HEADS, WIDTH, dtype=dtype, device=att.device)
        inputs = kernels.Projections(left, right, att)
        scoring = kernels.Scoring(0.2, edge_weight=matrix)
        kernels.gatv2_forward(block, inputs, softmax, scoring)
        lse, d = torch.full_like(softmax.row_sum, 0.2), torch.full_like(softmax.row_sum, 0.1)
        result = kernels.ResultGradient(torch.full_like(right, 0.3), lse, d)
        grads = [torch.zeros_like(x) for x in (left, right, att, matrix)]
        kernels.gatv2_backward(block, inputs, result, kernels.GATv2Gradients(*grads), scoring)
        found |= {f"{name} {i}": x for i, x in enumerate((softmax.row_sum, softmax.out, *grads))}
    return found


@pytest.mark.parametrize("function", [attention, gatv2])
def test_attention_is_that_of_double_precision(function):
    expected = function(torch.float64)
    for name, found in function(torch.float32).items():
        error = float((found.double() / expected[name] - 1).abs().max())
        assert error < 2 * LIMIT, (name, error)


@pytest.mark.parametrize("masked", [[0, 1, 2], [4, 5, 6], list(range(7))])
@pytest.mark.parametrize("count", [70, 7000])
def test_scores_of_minus_infinity_have_no_weight(masked, count):
    """At any place in a row: at its beginning they are the largest so far."""
    z, s = torch.rand(7, WIDTH), torch.zeros(7, HEADS)
    s[masked] = -torch.inf
    softmax = kernels.RunningSoftmax.zeros(1, HEADS, WIDTH, dtype=z.dtype, device=z.device)
    for low, high in ((0, 3), (3, 7)):
        edges = torch.arange(low, high, dtype=torch.int32).repeat_interleave(count)
        block = Block(0, 7, None, torch.tensor([0]), torch.tensor([len(edges)]), edges)
        t, scoring = torch.zeros(1, HEADS), kernels.Scoring(slope=0.2)
        kernels.gat_forward(block, kernels.Sources(z, s), t, softmax, scoring)
    left = [c for c in range(7) if c not in masked]
    torch.testing.assert_close(softmax.row_sum, torch.full((1, HEADS), float(len(left) * count)))
    expected = z[left].sum(0, keepdim=True) * count
    torch.testing.assert_close(softmax.out, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_better_than_any_number(sign):
    x = torch.arange(40.0).reshape(8, 5)
    x[3, 1] = x[6, 1] = x[7, 4] = torch.nan
    x[1, 2], x[4, 2] = torch.inf, -torch.inf  # whose sum is NaN, although both are numbers
    best = torch.full((1, 5), -sign * torch.inf)
    ties = torch.zeros(1, 5, dtype=torch.int32)
    for low, high in ((0, 5), (5, 8)):
        block = kernels.columns_between(hub(8, 8), low, high)
        kernels.spmm_max(block, x[low:high], best, ties, sign=sign)
    expected = x.amax(0, keepdim=True) if sign > 0 else x.amin(0, keepdim=True)
    torch.testing.assert_close(best, expected, equal_nan=True)
    assert int(ties.min()) >= 1
