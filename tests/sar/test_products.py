"""Products in bfloat16 on processors with instructions for it, and on those without."""

from __future__ import annotations

import pytest
import torch

from hpcgnn.kernels.cpu import dense as cpu_dense
from hpcgnn.nn import Linear
from hpcgnn.sar.products import ProductSum, RowProduct, SlabScratch, product, weight_gradient

BF16 = torch.bfloat16


@pytest.fixture
def without_units(monkeypatch):
    monkeypatch.setattr(cpu_dense, "has_short_products", lambda: False)
    monkeypatch.setattr(cpu_dense, "rounds_in_products", lambda: False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def rounded(x):
    return x.bfloat16().double()


def off(found, exact):
    """The largest difference beside the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def test_only_operands_are_rounded(without_units):
    x, weight, bias = random(5000, 30), random(40, 30, seed=1), random(40, seed=2)
    exact = rounded(x) @ rounded(weight).t()
    rows, out = RowProduct(weight.bfloat16().t()), torch.empty(5000, 40)
    scratch = SlabScratch(BF16)
    rows.write(scratch.rounded(x), out, start_G=bias)
    assert off(out, exact + bias.double()) < 1e-6
    rows.add(scratch.rounded(x), out)
    assert off(out, 2 * exact + bias.double()) < 1e-6
    short = rows.write(scratch.rounded(x), torch.empty(5000, 40, dtype=BF16), start_G=bias)
    wanted = exact + bias.double()
    assert ((short.double() - wanted).abs() <= wanted.abs() * 2**-8 + 1e-6).all()  # once
    assert torch.equal(product(x, weight, BF16), rows.write(scratch.rounded(x), short))


def test_sums_of_rounded_rows_are_those_of_float64(without_units):
    a, b = random(70_000, 12), random(70_000, 9, seed=1)
    exact = rounded(a).t() @ rounded(b)
    sums, of_a, of_b = ProductSum(BF16), SlabScratch(BF16), SlabScratch(BF16)
    for low in range(0, 70_000, 20_000):
        part = slice(low, low + 20_000)
        sums.add(of_a.rounded(a[part]), of_b.rounded(b[part]))
    assert off(sums.result(torch.float32), exact) < 1e-6
    assert off(weight_gradient(b, a, BF16), exact) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_rounds_what_torch_rounds(without_units, bias):
    torch.manual_seed(3)
    layer, x, g = Linear(20, 30, bias=bias), random(3000, 20).requires_grad_(), random(3000, 30)
    with torch.autocast("cpu", dtype=BF16):
        y = layer(x)
    y.backward(g)
    exact = rounded(x.detach()) @ rounded(layer.weight.detach()).t()
    if layer.bias is not None:
        exact = exact + layer.bias.detach().double()
        assert off(layer.bias.grad, g.double().sum(0)) < 1e-5
    assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == torch.float32
    assert off(y.detach(), exact) < 1e-6
    assert off(x.grad, rounded(g) @ rounded(layer.weight.detach())) < 1e-6
    assert off(layer.weight.grad, rounded(g).t() @ rounded(x.detach())) < 1e-6
    with pytest.raises(RuntimeError, match="differentiated twice"):
        with torch.autocast("cpu", dtype=BF16):
            (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        first.sum().backward()
