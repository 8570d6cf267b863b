from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from hpcgnn import kernels
from hpcgnn.errors import InputError
from tests.kernels.blocks import Edges, matrix, random_edges

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
DTYPES = [torch.float32, torch.float64]
WIDTHS = [*range(1, 36), 47, 63, 64, 65, 100, 128, 200, 255, 256, 257, 300, 515]


def product(edges: Edges, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(edges.num_rows, x.shape[1], dtype=torch.float64)
    return out.index_add_(0, edges.target, edges.weight[:, None] * x.double()[edges.source])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_adds_weighted_rows_at_every_width(width, dtype):
    for weighted, listed in itertools.product([False, True], repeat=2):
        edges = random_edges(13, 9, 70, seed=width, weighted=weighted, listed_rows=listed)
        x, out = matrix(9, width, dtype, 1), matrix(13, width, dtype, 2)
        beyond = out._base[:, width:].clone()
        expected = out.double() + product(edges, x)
        kernels.spmm(edges.block, x, out)
        assert torch.allclose(out.double(), expected, atol=10 * TOLERANCE[dtype], rtol=0)
        assert torch.equal(out._base[:, width:], beyond)
        zeros, unread = torch.zeros_like(out), torch.full_like(out, torch.nan)
        kernels.spmm(edges.block, x, zeros)
        kernels.spmm(edges.block, x, unread, adds=False)
        rows = slice(None) if edges.block.rows is None else edges.block.rows.long()
        assert torch.equal(unread[rows], zeros[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 8, 33])
def test_scaled_rows_equal_rows_multiplied_before(width, dtype):
    for weighted, listed in itertools.product([False, True], repeat=2):
        edges = random_edges(13, 9, 70, seed=width, weighted=weighted, listed_rows=listed)
        x, scale = matrix(9, width, dtype, 1), torch.rand(9, dtype=dtype) + 0.3
        out, expected = torch.ones(13, width, dtype=dtype), torch.ones(13, width, dtype=dtype)
        kernels.spmm(edges.block, x, out, scale_M=scale)
        kernels.spmm(edges.block, x * scale[:, None], expected)
        assert torch.equal(out, expected)
    with pytest.raises(InputError, match="scale must be contiguous with 9"):
        kernels.spmm(edges.block, x, out, scale_M=scale[:8].clone())


def scaled_as_they_are_written(width, device):
    """Check scaled sums on a GPU, with a self-loop per node as in GCN, then messages; also hubs."""
    edges = random_edges(40, 40, 9000, seed=width, weighted=True)
    part = random_edges(40, 9, 60, seed=width, listed_rows=True)
    here, there = (one.block.to(device) for one in (edges, part))
    scale, loop, by = (torch.rand(40) + 0.3 for _ in range(3))
    after = kernels.RowScale(scale.to(device), loop.to(device))
    for dtype in (torch.float32, torch.bfloat16):
        x, more = matrix(40, width, dtype, 1, pad=0), matrix(9, width, dtype, 2, pad=0)
        out = torch.full((40, width), torch.nan, device=device)
        given = {"scale_M": by.to(device), "after": after}
        kernels.spmm(here, x.to(device), out, adds=False, **given)
        kernels.spmm(there, more.to(device), out, after=kernels.RowScale(after.scale_N))
        terms = product(edges, x * by[:, None]) + loop.double()[:, None] * x
        expected = scale.double()[:, None] * (terms + product(part, more))
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(InputError, match=r"after\.loop needs adds=False"):
        kernels.spmm(here, x.to(device), out, after=after)


def test_scaling_sums_as_they_are_written_is_refused_on_cpus():
    with pytest.raises(InputError, match="only on a GPU"):
        scaled_as_they_are_written(4, torch.device("cpu"))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_in_bfloat16_equal_the_same_rows_in_float32(width):
    for weighted in (False, True):
        edges = random_edges(13, 9, 70, seed=width, weighted=weighted, listed_rows=True)
        x = torch.randn(9, width + 3).bfloat16()[:, :width]
        found, expected = matrix(13, width, torch.float32, 2), matrix(13, width, torch.float32, 2)
        kernels.spmm(edges.block, x, found)
        kernels.spmm(edges.block, x.float(), expected)
        assert torch.equal(found, expected)
    with pytest.raises(InputError):
        kernels.spmm(edges.block, x, found.bfloat16())


@pytest.mark.parametrize(("rows", "columns", "count"), [(0, 5, 0), (5, 0, 0), (1, 1, 1), (7, 3, 0)])
def test_empty_and_tiny_blocks(rows, columns, count):
    edges = random_edges(rows, columns, count)
    x, out = matrix(columns, 5, torch.float32, 1), torch.zeros(rows, 5)
    kernels.spmm(edges.block, x, out)
    assert torch.allclose(out.double(), product(edges, x))
    assert kernels.transpose(edges.block, rows).num_edges == count


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pieces_and_column_ranges_add_up_to_the_whole(threads):
    edges = random_edges(50, 20, 400, weighted=True, listed_rows=True)
    x = matrix(20, 33, torch.float32, 1)
    whole, pieces, ranges = (torch.zeros(50, 33) for _ in range(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels.spmm(edges.block, x, whole)
        count = edges.block.num_rows
        for low, high in [(0, 1), (1, 1), (1, count - 2), (count - 2, count)]:
            kernels.spmm(edges.block, x, pieces, rows=(low, high))
        for low, high in [(0, 7), (7, 7), (7, 12), (12, 20)]:
            kernels.spmm(kernels.columns_between(edges.block, low, high), x[low:high], ranges)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, pieces)
    assert torch.allclose(whole, ranges, atol=1e-5)
    assert torch.allclose(whole.double(), product(edges, x), atol=1e-5)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("most", [1, 4, 7, 20, 50])
def test_ranges_of_columns_have_the_rows_with_edges_there(most, listed):
    edges = random_edges(30, 20, 60, weighted=True, listed_rows=listed)
    block = kernels.columns_between(edges.block, 2, 19)
    x = matrix(20, 5, torch.float32, 1)
    whole, parts = torch.zeros(30, 5), torch.zeros(30, 5)
    kernels.spmm(block, x[2:19], whole)
    for number, low in enumerate(range(0, 17, most)):
        part = kernels.column_range(block, number, most, keep=False)
        assert most >= 17 or bool((part.end > part.begin).all())
        assert part.num_columns == min(most, 17 - low)
        kernels.spmm(part, x[2 + low : 2 + low + part.num_columns], parts)
        kept = kernels.column_range(block, number, most, keep=True)
        assert kernels.column_range(block, number, most, keep=True) is kept
        assert torch.equal(kept.begin, part.begin)
    torch.testing.assert_close(parts, whole)


def test_one_row_can_hold_most_edges():
    columns = torch.randint(30, (5000,), dtype=torch.int32)
    block = replace(
        random_edges(3, 30, 0).block,
        begin=torch.tensor([0, 0, 4990]),
        end=torch.tensor([0, 4990, 5000]),
        columns=columns,
    )
    x, out = matrix(30, 40, torch.float64, 3), torch.zeros(3, 40, dtype=torch.float64)
    kernels.spmm(block, x, out)
    assert torch.allclose(out[1], x[columns[:4990].long()].sum(0))
    assert torch.allclose(out[2], x[columns[4990:].long()].sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 16, 17, 31, 64, 100, 150])
def test_maximum_and_its_gradient_agree_with_torch(width, sign, dtype):
    edges = random_edges(13, 9, 60, seed=width, listed_rows=True)
    x = (matrix(9, width, dtype, 1) * 2).round().requires_grad_()
    best = torch.full((13, width), -sign * float("inf"), dtype=dtype)
    index = edges.target[:, None].expand(-1, width)
    expected = best.clone().scatter_reduce(
        0, index, x[edges.source], "amax" if sign > 0 else "amin", include_self=False
    )
    ties = torch.zeros(13, width, dtype=torch.int32)
    for low, high in [(0, 4), (4, 9)]:
        block = kernels.columns_between(edges.block, low, high)
        kernels.spmm_max(block, x.detach()[low:high], best, ties, sign=sign)
    assert torch.equal(best, expected.detach())
    attained = (x[edges.source] == expected[edges.target]).double()
    counted = torch.zeros(13, width, dtype=torch.float64).index_add_(0, edges.target, attained)
    assert torch.equal(ties.double(), counted)

    g = matrix(13, width, dtype, 2)
    (wanted,) = torch.autograd.grad(expected, x, g)
    grad = torch.zeros(9, width, dtype=dtype)
    share = g / ties.clamp(min=1)
    reverse = kernels.transpose(edges.block, 13)
    kernels.spmm_max_backward(reverse, best, share, x.detach(), grad)
    assert torch.allclose(grad, wanted, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("listed", [False, True])
def test_transpose_is_stable_and_carries_everything(listed):
    edges = random_edges(11, 8, 60, weighted=True, relations=4, feature_width=2, listed_rows=listed)
    back = kernels.transpose(edges.block, 11)
    order = edges.source.argsort(stable=True)
    assert back.num_columns == 11
    assert back.num_rows == 8
    assert torch.equal(back.columns.long(), edges.target[order])
    assert torch.equal(back.end - back.begin, torch.bincount(edges.source, minlength=8))
    assert torch.equal(back.weight, edges.block.weight[order])
    assert torch.equal(back.relation, edges.block.relation[order])
    assert torch.equal(back.features, edges.block.features[order])
    part = kernels.transpose(kernels.columns_between(edges.block, 3, 6), 11)
    assert torch.equal(part.columns, back.columns[back.begin[3] : back.end[5]])


def test_what_does_not_fit_is_refused():
    edges = random_edges(6, 4, 20)
    x, out = torch.zeros(4, 8), torch.zeros(6, 8)
    for wrong_x, wrong_out in [
        (x[:3], out),
        (x, out[:5]),
        (x, out[:, :7]),
        (x.double(), out),
        (x.half(), out.half()),
        (torch.zeros(8, 4).T, out),
        (x, torch.zeros(8, 6).T),
        (x.to("meta"), out.to("meta")),
    ]:
        with pytest.raises(InputError):
            kernels.spmm(edges.block, wrong_x, wrong_out)
    with pytest.raises(InputError):
        kernels.spmm(edges.block, x, out, rows=(0, 7))
    with pytest.raises(InputError):
        kernels.spmm(replace(edges.block, columns=edges.block.columns.long()), x, out)
    with pytest.raises(InputError):
        kernels.transpose(edges.block, 5)
