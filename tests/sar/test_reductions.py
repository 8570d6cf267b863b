from __future__ import annotations

import pytest
import torch

from hpcgnn.sar import reductions

ROWS = torch.tensor([0, 0, 0, 1, 1, 2])


def reduced(name: str, m: torch.Tensor, logit: torch.Tensor | None, piece: int) -> torch.Tensor:
    """Return reduced messages to three of four nodes, `piece` at a time."""
    reduction = reductions.make(name, m.new_zeros(4, m.shape[1]))
    for low in range(0, len(m), piece):
        part = slice(low, low + piece)
        reduction.add(ROWS[part], m[part], None if logit is None else logit[part])
    return reduction.finish(torch.tensor([3.0, 2.0, 1.0, 0.0]))


@pytest.mark.parametrize("piece", [1, 2, 6])
def test_softmax_leaves_masked_edges_out(piece):
    m = torch.arange(1.0, 7)[:, None]
    logit = torch.tensor([-torch.inf, 0, -torch.inf, -torch.inf, -torch.inf, 3])[:, None]
    assert reduced("softmax", m, logit, piece).flatten().tolist() == [2, 0, 6, 0]


@pytest.mark.parametrize("piece", [1, 2, 6])
@pytest.mark.parametrize("name", ["max", "min"])
def test_nan_is_better_than_any_number(name, piece):
    m = torch.tensor([5, torch.nan, 1, 2, 3, torch.nan])[:, None]
    expected = torch.tensor([torch.nan, 3 if name == "max" else 2, torch.nan, 0])
    torch.testing.assert_close(reduced(name, m, None, piece)[:, 0], expected, equal_nan=True)


@pytest.mark.parametrize("name", ["sum", "mean", "var", "softmax"])
def test_many_messages_in_float32_do_not_drift(name):
    count = 300_000
    m = torch.full((count, 1), 0.1)
    m[1::2] = 0.3
    logit = torch.full_like(m, 0.3)
    reduction = reductions.make(name, torch.zeros(1, 1))
    for low in range(0, count, 50_000):
        rows = torch.zeros(50_000, dtype=torch.int64)
        reduction.add(rows, m[low : low + 50_000], logit[low : low + 50_000])
    found = reduction.finish(torch.tensor([float(count)])).item()
    expected = {"sum": count * 0.2, "mean": 0.2, "var": 0.01, "softmax": 0.2}[name]
    assert abs(found / expected - 1) < 1e-5


def test_ties_are_counted_beyond_what_float32_can():
    best = reductions.make("max", torch.zeros(1, 1))
    rows, m = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1)
    best.add(rows, m, None)
    best.ties_NG += 1 << 24  # as if so many edges had come before
    best.add(rows, m, None)
    assert best.ties_NG.item() == (1 << 24) + 2
