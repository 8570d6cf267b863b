"""The CUDA sources, run on the CPU by the emulator, through the tests of the CPU kernels.

What this shows: indexing, lane layouts, masks, reductions over lanes and chunks, launch geometry
and arguments, and that results don't depend on the order in which threads run. What it can't show:
that they run on a GPU.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import hpcgnn.kernels.cpu
import hpcgnn.kernels.cuda
from hpcgnn import kernels
from hpcgnn.kernels import split
from tests.kernels import test_attention as attention
from tests.kernels import test_dropout as dropout
from tests.kernels import test_spmm as sums
from tests.kernels.blocks import matrix, random_edges

DTYPES = [torch.float32, torch.float64]
SHORT = [torch.float16, torch.bfloat16]
EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8}

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.fixture
def short_rows(monkeypatch):
    """Rows of more than 5 edges count as long."""
    monkeypatch.setattr(split, "LONGEST", 5)
    for module in (hpcgnn.kernels.cuda_sums, hpcgnn.kernels.cuda_attention):
        monkeypatch.setattr(module, "LONGEST", 5)


@pytest.mark.parametrize(("width", "dtype"), [
    *itertools.product([1, 4, 7, 33, 64, 128, 300], [torch.float32]),
    *itertools.product([2, 5, 130], [torch.float64]),
])  # fmt: skip
def test_sums(width, dtype):
    sums.test_adds_weighted_rows_at_every_width(width, dtype)


@pytest.mark.parametrize("shape", [(0, 5, 0), (5, 0, 0), (1, 1, 1), (7, 3, 0)])
def test_empty_and_tiny_blocks(shape):
    sums.test_empty_and_tiny_blocks(*shape)


def test_pieces_and_column_ranges(short_rows):
    sums.test_transpose_is_stable_and_carries_everything(True)
    sums.test_one_row_can_hold_most_edges()
    edges = random_edges(50, 20, 400, weighted=True, listed_rows=True)
    x = matrix(20, 33, torch.float32, 1)
    pieces, ranges = torch.zeros(50, 33), torch.zeros(50, 33)
    for low, high in [(0, 1), (1, 1), (1, 6), (6, edges.block.num_rows)]:
        kernels.spmm(edges.block, x, pieces, rows=(low, high))
    for low, high in [(0, 7), (7, 7), (7, 12), (12, 20)]:
        kernels.spmm(edges.block.columns_between(low, high), x[low:high], ranges)
    expected = sums.product(edges, x)
    assert torch.allclose(pieces.double(), expected, atol=1e-5)
    assert torch.allclose(ranges.double(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 6, 36, 150])
def test_maximum(width, dtype):
    for sign in (1, -1):
        sums.test_maximum_and_its_gradient_agree_with_torch(width, sign, dtype)


@pytest.mark.parametrize("width", [1, 12])
def test_maximum_of_long_rows(width, short_rows):
    sums.test_maximum_and_its_gradient_agree_with_torch(width, 1, torch.float32)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("width", [1, 16, 300])
def test_dropout_is_that_of_the_cpu(width, relu):
    x, ids = matrix(9, width, torch.float32, 1, pad=0), torch.arange(9) * 10**12
    given = {"p": 0.3, "seed": -1, "epoch": 7, "layer": 2, "relu": relu}
    found, expected = torch.empty_like(x), torch.empty_like(x)
    kernels.dropout_nodes(x, found, ids, **given)
    stream = kernels.dropout.Stream.of(-1, 7, 2)
    hpcgnn.kernels.cpu.dropout_nodes(x, expected, ids, 0.3, stream, relu)
    assert torch.equal(found, expected)
    dropout.test_values_and_gradients(relu, width, torch.float64)


@pytest.mark.parametrize(("heads", "channels"), [
    (1, 1), (1, 3), (3, 8), (4, 2), (4, 16), (2, 33), (1, 128), (5, 4), (9, 8), (1, 150), (2, 40),
])  # fmt: skip
def test_attention(heads, channels):
    attention.test_agrees_with_autograd_at_every_shape(heads, channels, torch.float32)


@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (3, 6), (1, 130)])
def test_attention_in_double_precision(heads, channels):
    attention.test_agrees_with_autograd_at_every_shape(heads, channels, torch.float64)
