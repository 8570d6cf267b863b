"""The CUDA kernels on a GPU against the CPU kernels and double-precision references."""

from __future__ import annotations

import pytest
import torch

import hpcgnn.kernels.cuda.backend
from hpcgnn import kernels
from hpcgnn.kernels import selftest
from tests.kernels import passes
from tests.kernels import test_attention as attention
from tests.kernels import test_spmm as sums
from tests.kernels.blocks import Edges, matrix, random_edges

pytestmark = pytest.mark.gpu
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12}


def moved(edges: Edges, device: torch.device) -> Edges:
    return Edges(
        edges.block.to(device), edges.source.to(device), edges.target.to(device), edges.num_rows
    )


def power_law(num_rows: int, num_columns: int, num_edges: int, **given) -> Edges:
    """Return a block in which one row has a fifth of all edges, far more than one warp takes."""
    edges = random_edges(num_rows, num_columns, num_edges, **given)
    assert int((edges.block.end - edges.block.begin).max()) > num_edges // 10
    return edges


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 7, 40, 47, 64, 128, 500])
def test_sums_and_maxima(width, dtype, gpu):
    edges = power_law(300, 200, 20_000, weighted=True, listed_rows=True)
    x = matrix(200, width, dtype, 1)
    there, x_there = moved(edges, gpu), x.to(gpu)
    wide = kernels.checks.sum_type(dtype)
    out, again = (torch.zeros(300, width, dtype=wide, device=gpu) for _ in range(2))
    kernels.spmm(there.block, x_there, out)
    kernels.spmm(there.block, x_there, again)
    assert torch.equal(out, again)
    expected = sums.product(edges, x)
    assert torch.allclose(out.cpu().double(), expected, rtol=TOLERANCE.get(dtype, 2e-5), atol=2e-4)

    scale, scaled = torch.rand(200, dtype=wide, device=gpu), torch.zeros_like(out)
    kernels.spmm(there.block, x_there, scaled, scale_M=scale)
    if dtype == wide:
        again.zero_()
        kernels.spmm(there.block, x_there * scale[:, None], again)
        assert torch.equal(scaled, again)
    expected = sums.product(edges, x * scale.cpu()[:, None])
    assert torch.allclose(
        scaled.cpu().double(), expected, rtol=TOLERANCE.get(dtype, 2e-5), atol=2e-4
    )

    best = torch.full((300, width), -torch.inf, dtype=dtype, device=gpu)
    ties = torch.zeros(300, width, dtype=torch.int32, device=gpu)
    kernels.spmm_max(there.block, x_there, best, ties)
    on_cpu, ties_cpu = torch.full((300, width), -torch.inf).to(wide), torch.zeros_like(ties).cpu()
    kernels.spmm_max(edges.block, x.to(wide), on_cpu, ties_cpu)
    assert torch.equal(best.cpu().to(wide), on_cpu)
    assert torch.equal(ties.cpu(), ties_cpu)


@pytest.mark.parametrize("width", [7, 64, 300])
def test_sums_are_scaled_as_they_are_written(width, gpu):
    sums.scaled_as_they_are_written(width, gpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_masks_are_bitwise_those_of_the_cpu(dtype, gpu):
    x, ids = matrix(1000, 77, dtype, 1), torch.arange(1000) * 10**12 - 7
    given = {"p": 0.37, "seed": -3, "epoch": 11, "layer": 2, "relu": True}
    here, there = torch.empty_like(x), torch.empty_like(x, device=gpu)
    kernels.dropout_nodes(x, here, ids, **given)
    kernels.dropout_nodes(x.to(gpu), there, ids.to(gpu), **given)
    assert torch.equal(here, there.cpu())


def run(problem, device: torch.device) -> list[torch.Tensor]:
    """Return result, log-sum-exp and gradients of a problem moved to `device`."""
    problem.edges = moved(problem.edges, device)
    problem.inputs = {name: value.to(device) for name, value in problem.inputs.items()}
    problem.g = problem.g.to(device)
    if problem.dropout is not None:
        ids = {
            name: getattr(problem.dropout, name).to(device)
            for name in ("source_ids", "destination_ids")
        }
        problem.dropout = kernels.EdgeDropout(**(vars(problem.dropout) | ids))
    with device:
        result, lse = problem.forward()
        return [result, lse, *problem.backward(result, lse).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize(
    ("heads", "channels"), [(1, 1), (8, 8), (4, 16), (4, 32), (4, 128), (1, 47), (3, 300)]
)
@attention.both_kinds
def test_attention_of_both_kinds(kind, heads, channels, depth, dtype, gpu):
    edges = power_law(200, 150, 12_000, feature_width=depth)
    ids = torch.randperm(350)
    dropout = kernels.EdgeDropout(0.3, 1, 2, 3, ids[:150].clone(), ids[150:].clone())
    here = run(kind(edges, heads, channels, dtype, dropout=dropout), torch.device("cpu"))
    there = kind(edges, heads, channels, dtype, dropout=dropout)
    found, again = run(there, gpu), run(there, gpu)
    for value, repeated, expected in zip(found, again, here, strict=True):
        assert torch.equal(value, repeated)
        limit = 5e-4 if dtype == torch.float32 else 1e-10
        assert (value.cpu() - expected).abs().max() < limit * max(1, expected.abs().max())


@pytest.mark.parametrize(("heads", "channels", "p"), [(4, 8, 0.0), (3, 5, 0.4), (1, 150, 0.0)])
def test_self_loops_and_the_end_of_attention_need_no_extra_passes(heads, channels, p, gpu):
    passes.loops_come_with_the_first_edges(heads, channels, p, gpu)
    passes.ends_in_one_pass(heads, channels, p, gpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dropout_rounds_sums_to_16_bits(dtype, gpu):
    x, bias, ids = matrix(50, 36, torch.float32, 1), torch.randn(36), torch.arange(50)
    divisor, out = torch.rand(50, 3) + 1, torch.empty(50, 36, dtype=dtype, device=gpu)
    given = {"p": 0.3, "seed": 1, "epoch": 2, "layer": 3, "relu": True}
    expected = x.view(50, 3, 12) / divisor[:, :, None] + bias.view(3, 12)
    kernels.dropout_nodes(expected.view(50, 36), x, ids, **given)
    sums = kernels.Sums(divisor.to(gpu), bias.to(gpu))
    given_x = expected.sub(bias.view(3, 12)).mul(divisor[:, :, None]).view(50, 36).to(gpu)
    kernels.dropout_nodes(given_x, out, ids.to(gpu), **given, sums=sums)
    torch.testing.assert_close(out.cpu().float(), x, rtol=1e-2, atol=1e-2)
    assert torch.equal(out.cpu() == 0, x.to(dtype) == 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "channels"), [(4, 64), (1, 1), (3, 5), (8, 8), (1, 300)])
def test_scores_of_heads(heads, channels, dtype, gpu):
    wide = kernels.checks.sum_type(dtype)
    z = matrix(70, heads * channels, dtype, 1)
    source, target = (matrix(heads, channels, wide, seed) for seed in (2, 3))
    out = torch.full((70, 2 * heads), torch.nan, dtype=wide, device=gpu)
    kernels.head_scores(z.to(gpu), source.to(gpu), target.to(gpu), out)
    both = torch.stack([source, target]).double()
    expected = torch.einsum("nhc,khc->nkh", z.double().view(70, heads, channels), both)
    torch.testing.assert_close(out.cpu().double(), expected.flatten(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_packed_and_added(dtype, gpu):
    x, rows = matrix(50, 36, torch.float32, 1), torch.randperm(50)[:20].int()
    packed = torch.empty(20, 36, dtype=dtype, device=gpu)
    hpcgnn.kernels.cuda.backend.pack_rows(x.to(gpu), rows.to(gpu), packed)
    assert torch.equal(packed.cpu(), x[rows.long()].to(dtype))
    target = torch.zeros(50, 36, device=gpu)
    hpcgnn.kernels.cuda.backend.add_rows(packed, rows.to(gpu), target)
    assert torch.equal(target.cpu()[rows.long()], packed.cpu().float())


def test_the_self_test_finds_nothing(gpu):
    assert selftest.differences(gpu) == {}


def test_kernels_follow_torchs_current_stream(gpu):
    edges = moved(random_edges(100, 100, 2000), gpu)
    stream = torch.cuda.Stream(gpu)
    x = torch.zeros(100, 32, device=gpu)
    out = torch.zeros(100, 32, device=gpu)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.fill_(1)
        kernels.spmm(edges.block, x, out)
        done = out.sum()
    stream.synchronize()
    assert float(done) == 2000 * 32
