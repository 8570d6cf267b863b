"""Products in bfloat16 on processors without instructions for it."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.kernels.cpu import dense as cpu_dense
from hpcgnn.nn import Linear
from hpcgnn.sar.products import ProductSum, RowProduct, SlabScratch, product, weight_gradient

BF16, CPU = torch.bfloat16, torch.device("cpu")


@pytest.fixture(autouse=True)
def without_units(monkeypatch):
    monkeypatch.setattr(cpu_dense, "has_bf16_products", lambda: False)
    monkeypatch.setattr(cpu_dense, "rounds_in_products", lambda: False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def off(found, exact):
    """Return the largest difference relative to the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def test_only_bfloat16_on_cpus_is_multiplied_in_float32():
    assert kernels.factor_type(BF16, CPU) == torch.float32
    assert kernels.factor_type(torch.float64, CPU) == torch.float64
    assert kernels.factor_type(BF16, torch.device("cuda")) == BF16


@pytest.mark.parametrize("given", [torch.float32, BF16])
def test_rows_and_weights_are_multiplied_as_they_are(given):
    x, weight, bias = random(5000, 30).to(given), random(40, 30, seed=1), random(40, seed=2)
    exact = x.double() @ weight.double().t()
    rows, scratch, out = RowProduct(weight.t(), BF16), SlabScratch(BF16), torch.empty(5000, 40)
    rows.write(scratch.rounded(x), out, start_G=bias)
    assert off(out, exact + bias.double()) < 1e-6
    rows.add(scratch.rounded(x), out)
    assert off(out, 2 * exact + bias.double()) < 1e-6
    rounded = rows.write(scratch.rounded(x), torch.empty(5000, 40, dtype=BF16))
    assert ((rounded.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    assert off(product(x, weight, BF16), exact) < 1e-6


def test_sums_of_outer_products_agree_with_float64():
    a, b = random(70_000, 12), random(70_000, 9, seed=1)
    exact, sums, scratch = a.double().t() @ b.double(), ProductSum(BF16), SlabScratch(BF16)
    for low in range(0, 70_000, 20_000):
        part = slice(low, low + 20_000)
        sums.add(scratch.rounded(a[part]), b[part])
    assert off(sums.result(torch.float32), exact) < 1e-6
    assert off(weight_gradient(b, a, BF16), exact) < 1e-6


def test_a_linear_layer_agrees_with_float32():
    torch.manual_seed(3)
    layer, x, g = Linear(20, 30), random(3000, 20).requires_grad_(), random(3000, 30)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            y = layer(x)
        found.append([y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)])
    assert all(map(torch.equal, *found))
