"""Inner products of rows, head by head."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.errors import InputError
from tests.kernels.blocks import matrix
from tests.kernels.test_attention import DTYPES, TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (3, 5), (4, 32), (2, 47)])
@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_head_dots(dtype, heads, channels, count):
    a, b = (matrix(count, heads * channels, dtype, seed) for seed in (1, 2))
    out = torch.full((count, 2 * heads), torch.nan, dtype=dtype)
    close = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for minus in (None, matrix(1, heads * channels, dtype, 3)[0]):
        kernels.head_dots(a, b, out[:, heads:], minus_K=minus)
        less = b if minus is None else b - minus
        pair = (x.double().view(-1, heads, channels) for x in (a, less))
        expected = torch.einsum("nhc,nhc->nh", *pair)
        torch.testing.assert_close(out[:, heads:].double(), expected, **close)
        assert out[:, :heads].isnan().all()
    with pytest.raises(InputError):
        kernels.head_dots(a, b[:, 1:], out[:, heads:])
    with pytest.raises(InputError):
        kernels.head_dots(a, b, out[:, heads:], minus_K=b.new_zeros(heads * channels + 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (3, 5), (4, 32), (2, 47), (1, 300)])
@pytest.mark.parametrize("count", [0, 1, 7, 70])
def test_head_scores(dtype, heads, channels, count):
    z = matrix(count, heads * channels, dtype, 1)
    source, target = (matrix(heads, channels, dtype, seed) for seed in (2, 3))
    out = torch.full((count, 3 * heads), torch.nan, dtype=dtype)
    kernels.head_scores(z, source, target, out[:, heads:])
    both = torch.stack([source, target]).double()
    expected = torch.einsum("nhc,khc->nkh", z.double().view(-1, heads, channels), both)
    close = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    torch.testing.assert_close(out[:, heads:].double(), expected.flatten(1), **close)
    assert out[:, :heads].isnan().all()
    with pytest.raises(InputError):
        kernels.head_scores(z, source, target[:, 1:], out[:, heads:])
