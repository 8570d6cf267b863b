from __future__ import annotations

import math

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.errors import InputError
from tests.kernels.blocks import matrix

KEYS = {"seed": 5, "epoch": 3, "layer": 1}


def dropped(x, ids, p, **keys):
    out = torch.empty_like(x)
    kernels.dropout_nodes(x, out, ids, p=p, **(KEYS | keys))
    return out


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_is_unbiased_and_independent(p):
    nodes, width = 4000, 64
    mask = (dropped(torch.ones(nodes, width), torch.arange(nodes), p) > 0).double()
    sigma = math.sqrt(p * (1 - p))
    assert abs(mask.mean() - (1 - p)) < 5 * sigma / math.sqrt(nodes * width)
    assert (mask.mean(0) - (1 - p)).abs().max() < 5 * sigma / math.sqrt(nodes)
    assert (mask.mean(1) - (1 - p)).abs().max() < 5.5 * sigma / math.sqrt(width)
    centred = (mask - (1 - p)) / sigma
    columns = centred.T @ centred / nodes
    assert (columns - torch.diag(columns.diag())).abs().max() < 6 / math.sqrt(nodes)
    rows = centred[:500] @ centred[:500].T / width
    assert (rows - torch.diag(rows.diag())).square().mean() * width == pytest.approx(1, abs=0.05)


def test_mask_depends_on_every_key_and_on_nothing_else():
    x = torch.ones(50, 19)
    ids = torch.arange(50) * 10**12
    base = dropped(x, ids, 0.5)
    assert torch.equal(base, dropped(x, ids, 0.5))
    for keys in ({"seed": 6}, {"epoch": 4}, {"layer": 2}, {"seed": -5}):
        assert 0.35 < (dropped(x, ids, 0.5, **keys) == base).double().mean() < 0.65
    shuffle = torch.randperm(50)
    assert torch.equal(dropped(x, ids[shuffle], 0.5), base[shuffle])
    assert torch.equal(dropped(x[:, :7].contiguous(), ids, 0.5), base[:, :7])
    assert torch.equal(dropped(x.double(), ids, 0.5).float(), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 16, 33, 128, 300])
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients(relu, width, dtype):
    x, g, ids = matrix(30, width, dtype, 1), matrix(30, width, dtype, 2), torch.arange(30) + 7
    mask = dropped(torch.ones(30, width, dtype=dtype), ids, 0.3)
    out = torch.empty(30, width, dtype=dtype)
    kernels.dropout_nodes(x, out, ids, p=0.3, relu=relu, **KEYS)
    assert torch.equal(out, (x.relu() if relu else x) * mask)
    grad = torch.empty(30, width, dtype=dtype)
    kernels.dropout_nodes_backward(g, grad, ids, p=0.3, y_NF=out if relu else None, **KEYS)
    assert torch.equal(grad, g * mask * (x > 0) if relu else g * mask)
    kernels.dropout_nodes(x, x, ids, p=0.3, relu=relu, **KEYS)
    assert torch.equal(x, out)


@pytest.mark.parametrize("p", [0, 0.3])
@pytest.mark.parametrize("width", [1, 8, 33, 130, 256])
def test_bits_agree_with_the_output(width, p):
    x, wide, ids = matrix(20, width, torch.float32, 1), torch.randn(20, width + 1), torch.arange(20)
    out, expected, found = (torch.empty(20, width) for _ in range(3))
    passed = kernels.new_passed(x, out)
    assert passed.dtype == torch.uint8 and passed.numel() <= 20 * max(16, width)
    kernels.dropout_nodes(x, out, ids, p=p, relu=True, passed=passed, **KEYS)
    for g in (wide[:, :width].contiguous(), wide[:, 1:]):  # aligned for wide words, and not aligned
        kernels.dropout_nodes_backward(g, expected, ids, p=p, y_NF=out, **KEYS)
        kernels.dropout_nodes_backward(g, found, ids, p=p, passed=passed, **KEYS)
        assert torch.equal(found, expected)


def test_zero_probability_changes_nothing():
    x, ids = matrix(20, 9, torch.float32, 1), torch.arange(20)
    assert torch.equal(dropped(x.contiguous(), ids, 0.0), x)


def test_what_does_not_fit_is_refused():
    x, ids = torch.zeros(4, 3), torch.arange(4)
    for p, wrong in [(1.0, ids), (-0.1, ids), (0.5, ids[:3]), (0.5, ids.int())]:
        with pytest.raises(InputError):
            kernels.dropout_nodes(x, x, wrong, p=p, **KEYS)
    with pytest.raises(InputError):
        kernels.dropout_nodes(x, torch.zeros(3, 3), ids, p=0.5, **KEYS)
