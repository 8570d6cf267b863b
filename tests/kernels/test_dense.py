"""Dense products against float64."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.kernels.cpu import dense as cpu_dense
from hpcgnn.kernels.cpu import library as cpu_library

SHAPES = [(0, 3, 5), (1, 1, 1), (5, 8, 3), (97, 200, 16), (103, 193, 67), (400, 40, 130)]


def random(*shape, pad=3):
    """Return a matrix whose rows are not contiguous."""
    return torch.rand(shape[0], shape[1] + pad)[:, : shape[1]] - 0.5


@pytest.mark.parametrize(("rows", "deep", "width"), SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_product_is_that_of_float64(rows, deep, width, threads):
    torch.manual_seed(rows)
    x, weight, whole = random(rows, deep), random(width, deep).t(), torch.rand(rows, width + 3)
    packed, start = kernels.pack_weights(weight), random(1, width, pad=0)[0]
    out, beside = whole[:, :width], whole[:, width:].clone()
    product, before = x.double() @ weight.double(), out.double()
    count = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels.product(x, packed, out, adds=True)
        torch.testing.assert_close(out.double(), before + product, rtol=0, atol=1e-5)
        kernels.product(x, packed, out)
        torch.testing.assert_close(out.double(), product, rtol=0, atol=1e-5)
        kernels.product(x, packed, out, start_G=start)
        torch.testing.assert_close(out.double(), start + product, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(count)
    assert torch.equal(whole[:, width:], beside)
    for low in range(0, rows, 7):  # only some rows, bitwise the same
        part = torch.empty(len(x[low : low + 7]), width)
        kernels.product(x[low : low + 7], packed, part, start_G=start)
        assert torch.equal(part, out[low : low + 7])


@pytest.mark.parametrize(("rows", "deep", "width"), SHAPES)
def test_outer_products_are_those_of_float64(rows, deep, width):
    torch.manual_seed(rows)
    a, b, out = random(rows, deep), random(rows, width), random(deep, width)
    expected = out.double() + a.double().t() @ b.double()
    kernels.add_outer_products(a, b, out)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_outer_products_of_very_many_equal_rows_do_not_drift():
    a, b, out = torch.full((200_000, 4), 0.1), torch.full((200_000, 8), 0.1), torch.zeros(4, 8)
    for low in range(0, 200_000, 20_000):
        kernels.add_outer_products(a[low : low + 20_000], b[low : low + 20_000], out)
    exact = 200_000 * a[0, 0].double() * b[0, 0].double()
    assert (out.double() / exact - 1).abs().max() < 2e-5


BF16_SHAPES = [*SHAPES, (29, 1100, 70), (400, 513, 6)]


@pytest.fixture(params=cpu_library.supported())
def instruction_set(request, monkeypatch):
    """Each instruction set of this processor."""
    monkeypatch.setenv("HPCGNN_ISA", request.param)
    caches = (cpu_library.instruction_set, cpu_library.function, cpu_dense._packing)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(("rows", "deep", "width"), BF16_SHAPES)
def test_products_in_bfloat16_round_only_operands(instruction_set, rows, deep, width):
    """Compare with float64 products of rounded operands, whichever operand is given rounded."""
    torch.manual_seed(rows)
    x, weight = random(rows, deep, pad=1), random(width, deep).t().bfloat16()
    packed, start = kernels.pack_weights(weight), random(1, width, pad=0)[0]
    whole = torch.rand(rows, width + 3)
    out, beside = whole[:, :width], whole[:, width:].clone()
    before, exact = out.double(), x.bfloat16().double() @ weight.double()
    kernels.product(x, packed, out, adds=True)
    torch.testing.assert_close(out.double(), before + exact, rtol=0, atol=2e-5)
    kernels.product(x, packed, out, start_G=start)
    torch.testing.assert_close(out.double(), start + exact, rtol=0, atol=2e-5)
    assert torch.equal(whole[:, width:], beside)
    for given in (x.bfloat16(), random(rows, deep, pad=4).copy_(x).bfloat16()):
        found, rounded = torch.empty(rows, width), torch.empty(rows, width).bfloat16()
        kernels.product(given, packed, found, start_G=start)
        assert torch.equal(found, out)
        kernels.product(given, packed, rounded, start_G=start)
        assert torch.equal(rounded, out.bfloat16())
    for low in range(0, rows, 7):  # only some rows, bitwise the same
        part = torch.empty(len(x[low : low + 7]), width)
        kernels.product(x[low : low + 7], packed, part, start_G=start)
        assert torch.equal(part, out[low : low + 7])


@pytest.mark.parametrize(("rows", "deep", "width"), BF16_SHAPES)
def test_outer_products_in_bfloat16_round_only_operands(instruction_set, rows, deep, width):
    torch.manual_seed(rows)
    a, b, before = random(rows, deep), random(rows, width, pad=1), random(deep, width)
    exact = before.double() + a.bfloat16().double().t() @ b.bfloat16().double()
    found = []
    for left, right in ((a, b), (a.bfloat16(), b), (a, b.bfloat16()), (a.bfloat16(), b.bfloat16())):
        out = before.clone()
        kernels.add_outer_products(left, right, out, dtype=torch.bfloat16)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-5)
        found.append(out)
    assert all(torch.equal(out, found[0]) for out in found)


def test_rows_in_bfloat16_are_multiplied_in_float32_where_the_weights_are(instruction_set):
    x, weight, wide = random(103, 70).bfloat16(), random(70, 9), random(103, 9)
    found, expected = torch.empty(103, 9), torch.empty(103, 9)
    packed = kernels.pack_weights(weight)
    kernels.product(x, packed, found)
    kernels.product(x.float(), packed, expected)
    assert torch.equal(found, expected)
    found, expected = torch.zeros(9, 70), torch.zeros(9, 70)
    kernels.add_outer_products(wide, x, found)
    kernels.add_outer_products(wide, x.float(), expected)
    assert torch.equal(found, expected)


def test_numbers_without_a_neighbour_in_bfloat16_round_as_torch_rounds(instruction_set):
    """Ties to even, overflow to infinity, infinities and NaN."""
    numbers = torch.tensor([1.00390625, 1.01171875, 3.4e38, -3.4e38, torch.inf, torch.nan, -0.0])
    out = torch.empty(7, 1)
    kernels.product(numbers[:, None], kernels.pack_weights(torch.ones(1, 1).bfloat16()), out)
    torch.testing.assert_close(
        out[:, 0], numbers.bfloat16().float(), rtol=0, atol=0, equal_nan=True
    )


def test_operands_that_do_not_fit_are_refused():
    packed = kernels.pack_weights(torch.ones(3, 2))
    with pytest.raises(InputError, match="x must have shape"):
        kernels.product(torch.ones(4, 2), packed, torch.ones(4, 2))
    with pytest.raises(InputError, match="out must have shape"):
        kernels.product(torch.ones(4, 3), packed, torch.ones(3, 2))
    with pytest.raises(InputError, match=r"x must be torch\.float32"):
        kernels.product(torch.ones(4, 3).double(), packed, torch.ones(4, 2))
    with pytest.raises(InputError, match="weights"):
        kernels.pack_weights(torch.ones(3, 2).double())
    with pytest.raises(InputError, match=r"out must be torch\.float32"):
        bf16 = kernels.pack_weights(torch.ones(3, 2).bfloat16())
        kernels.product(torch.ones(4, 3), bf16, torch.ones(4, 2).bfloat16(), adds=True)
