"""Dense products against float64."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.errors import InputError

SHAPES = [(0, 3, 5), (1, 1, 1), (5, 8, 3), (97, 200, 16), (103, 193, 67), (400, 40, 130)]


def random(*shape, pad=3):
    """A matrix whose rows don't follow each other."""
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
    for low in range(0, rows, 7):  # some rows alone, with the same bits
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
