"""The CUDA sources, run on the CPU by the emulator, through the tests of the CPU kernels.

What this shows: indexing, lane layouts, masks, reductions over lanes and chunks, launch geometry
and arguments, and that results don't depend on the order in which threads run. What it can't show:
that they run on a GPU.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hpcgnn.kernels.cpu.backend
import hpcgnn.kernels.cuda.backend
from hpcgnn import kernels
from hpcgnn.kernels import chunks, selftest
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.cuda import shapes
from hpcgnn.sar.products import RowLayout
from hpcgnn.sar.stream import Payload
from tests.fake_device.tensors import is_launch
from tests.kernels import passes
from tests.kernels import test_attention as attention
from tests.kernels import test_dropout as dropout
from tests.kernels import test_heads as heads_of
from tests.kernels import test_spmm as sums
from tests.kernels.blocks import matrix, random_edges

DTYPES = [torch.float32, torch.float64]
HALF_PRECISION = [torch.float16, torch.bfloat16]
EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8}

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.fixture
def short_rows(monkeypatch):
    """Treat rows of more than 5 edges as long ones."""
    monkeypatch.setattr(chunks, "LONGEST", 5)
    for module in (hpcgnn.kernels.cuda.sums, hpcgnn.kernels.cuda.gat):
        monkeypatch.setattr(module, "LONGEST", 5)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        *itertools.product([1, 4, 7, 33, 64, 128, 300], [torch.float32]),
        *itertools.product([2, 5, 130], [torch.float64]),
    ],
)
def test_sums(width, dtype):
    sums.test_adds_weighted_rows_at_every_width(width, dtype)


@pytest.mark.parametrize("shape", [(0, 5, 0), (5, 0, 0), (1, 1, 1), (7, 3, 0)])
def test_empty_and_tiny_blocks(shape):
    sums.test_empty_and_tiny_blocks(*shape)


def test_pieces_and_column_ranges(short_rows):
    sums.test_transpose_is_stable_and_carries_everything(True)
    sums.test_ranges_of_columns_have_the_rows_with_edges_there(4, True)
    sums.test_one_row_can_hold_most_edges()
    edges = random_edges(50, 20, 400, weighted=True, listed_rows=True)
    x = matrix(20, 33, torch.float32, 1)
    pieces, ranges = torch.zeros(50, 33), torch.zeros(50, 33)
    for low, high in [(0, 1), (1, 1), (1, 6), (6, edges.block.num_rows)]:
        kernels.spmm(edges.block, x, pieces, rows=(low, high))
    for low, high in [(0, 7), (7, 7), (7, 12), (12, 20)]:
        kernels.spmm(kernels.columns_between(edges.block, low, high), x[low:high], ranges)
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
    hpcgnn.kernels.cpu.backend.dropout_nodes(x, expected, ids, 0.3, stream, relu, None)
    assert torch.equal(found, expected)
    dropout.test_values_and_gradients(relu, width, torch.float64)
    dropout.test_bits_agree_with_the_output(width, 0.3 if relu else 0)


HEADS = [(1, 1), (3, 8), (4, 16), (2, 33), (1, 128), (9, 8), (1, 150), (2, 40), (2, 64)]


@pytest.mark.parametrize(("heads", "channels"), HEADS)
@attention.both_kinds
def test_attention(kind, heads, channels):
    attention.test_agrees_with_autograd_at_every_shape(kind, heads, channels, torch.float32)


@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (3, 6), (1, 130)])
@attention.both_kinds
def test_attention_in_double_precision(kind, heads, channels):
    attention.test_agrees_with_autograd_at_every_shape(kind, heads, channels, torch.float64)


@attention.both_kinds
def test_attention_of_long_rows(kind, short_rows, emulated):
    attention.test_agrees_with_autograd_at_every_shape(kind, 3, 8, torch.float32)
    assert "gat_join<float>" in emulated.launched
    attention.test_two_runs_are_bitwise_the_same_and_pieces_agree(kind, 1)


def test_gradients_of_edge_features_in_slabs(short_rows, monkeypatch):
    """Only few gradients of scores exist at a time: those of a slab and of its last row."""
    made = []
    real = hpcgnn.kernels.cuda.gat._slabs

    def watched(part, rows):
        longest = int((part.end - part.begin).max())
        for slab in real(part, rows):
            made.append(slab[2] - slab[1])
            assert made[-1] <= 20 + longest
            yield slab

    monkeypatch.setattr(hpcgnn.kernels.cuda.gat, "_slabs", watched)
    monkeypatch.setattr(hpcgnn.kernels.cuda.gat, "SLAB_EDGES", 20)
    attention.test_agrees_with_autograd_at_every_shape(attention.GAT, 3, 8, torch.float32)
    attention.test_two_runs_are_bitwise_the_same_and_pieces_agree(attention.GAT, 1)
    assert len(made) > 10


def test_gradients_of_weights_do_not_drift(monkeypatch):
    """A warp sums over all its rows, and equal numbers round in the same direction every time."""
    monkeypatch.setattr(hpcgnn.kernels.cuda.gatv2, "_MOST_BLOCKS", 1)
    rows, degree, channels = 12, 500, 31
    end = torch.arange(1, rows + 1) * degree
    columns = (torch.arange(rows * degree) % 7).int()
    features = torch.full((rows * degree, 1), 0.3)
    block = Block(0, 7, None, end - degree, end, columns, features=features)

    def gradients(dtype):
        def filled(count, width, value):
            return torch.full((count, width), value, dtype=dtype)

        inputs = kernels.Projections(
            filled(7, channels, 0.1), filled(rows, channels, 0.2), filled(1, channels, 0.7)
        )
        lse, d = filled(rows, 1, 0.2), filled(rows, 1, 0.1)
        found = [torch.zeros_like(x) for x in (inputs.zl, inputs.zr, inputs.att, inputs.att)]
        kernels.gatv2_backward(
            block,
            inputs,
            kernels.ResultGradient(filled(rows, channels, 0.3), lse, d),
            kernels.GATv2Gradients(*found),
            kernels.Scoring(0.2, edge_weight=filled(1, channels, 0.3)),
        )
        return found

    for found, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert float((found.double() / expected - 1).abs().max()) < 5e-6


def test_attention_with_extreme_scores():
    for kind in attention.KINDS:
        attention.test_extreme_scores(kind, 1e4)
        attention.test_extreme_scores(kind, 1e-30)
    attention.test_rows_without_edges_stay_as_they_were()
    attention.test_not_a_number_is_passed_on()


@pytest.mark.parametrize("depth", [0, 2])
@attention.both_kinds
def test_attention_under_dropout(kind, depth):
    attention.test_dropout_agrees_with_autograd_under_its_mask(kind, depth, torch.float32)
    attention.test_dropout_is_the_same_in_every_partition_of_the_edges(kind)


def test_attention_dropout_is_that_of_the_cpu(monkeypatch):
    problem = attention.with_dropout(attention.GAT, 0.4)
    found = attention.mask_of(problem)
    monkeypatch.undo()
    assert torch.equal(found, attention.mask_of(problem))


def test_order_of_threads_changes_nothing(emulated, short_rows):
    def everything():
        edges = random_edges(40, 30, 500, feature_width=2)
        for kind in attention.KINDS:
            problem = kind(edges, 4, 12, torch.float32)
            result, lse = problem.forward()
            yield from (result, lse, *problem.backward(result, lse).values())
        x, best = matrix(30, 5, torch.float32, 1), torch.full((40, 5), -torch.inf)
        out, ties = torch.zeros(40, 5), torch.zeros(40, 5, dtype=torch.int32)
        kernels.spmm(edges.block, x, out)
        kernels.spmm_max(edges.block, x, best, ties)
        yield from (out, best, ties)

    first = list(everything())
    for emulated.seed in (1, 2):
        assert all(map(torch.equal, first, everything()))


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("width", [5, 18, 64])
def test_sums_in_half_precision(width, dtype, short_rows):
    edges = random_edges(13, 9, 70, weighted=True)
    x = matrix(9, width, dtype, 1, pad=0)
    exact = sums.product(edges, x)
    for kind in (torch.float32, dtype):
        out = torch.zeros(13, width, dtype=kind)
        kernels.spmm(edges.block, x, out)
        error = (out.double() - exact).abs() / exact.abs().clamp(min=1)
        assert error.max() < (1e-6 if kind == torch.float32 else EPSILON[dtype])
    best, ties = (torch.full((13, width), -torch.inf, dtype=dtype), torch.zeros(13, width).int())
    kernels.spmm_max(edges.block, x, best, ties)
    wide = best.float(), x.float()
    assert torch.equal(wide[0], _maximum(edges, wide[1]))
    share, grad = matrix(13, width, dtype, 2, pad=0), torch.zeros(9, width)
    reverse = kernels.transpose(edges.block, 13)
    kernels.spmm_max_backward(reverse, best, share, x, grad)
    hit = wide[1][edges.source] == wide[0][edges.target]
    wanted = torch.zeros(9, width).index_add_(0, edges.source, hit * share.float()[edges.target])
    assert torch.allclose(grad, wanted, atol=1e-5)


def _maximum(edges, x):
    index = edges.target[:, None].expand(-1, x.shape[1])
    best = torch.full((edges.num_rows, x.shape[1]), -torch.inf)
    return best.scatter_reduce(0, index, x[edges.source], "amax", include_self=False)


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("width", [3, 8, 40])
def test_rows_are_packed_and_added_and_dropped(width, dtype):
    rows = torch.tensor([4, 0, 6], dtype=torch.int32)
    for given, made in [(torch.float32, dtype), (dtype, dtype), (torch.float32, torch.float32)]:
        x = matrix(7, width, given, 1)
        packed = torch.empty(3, width, dtype=made)
        hpcgnn.kernels.cuda.backend.pack_rows(x, rows, packed)
        assert torch.equal(packed, x[rows.long()].to(made))
    target = matrix(7, width, torch.float32, 2)
    expected = target.index_add(0, rows.long(), packed)
    hpcgnn.kernels.cuda.backend.add_rows(packed, rows, target)
    assert torch.equal(target, expected)
    x, out = matrix(7, width, dtype, 3), torch.empty(7, width, dtype=dtype)
    given = {"p": 0.5, "seed": 1, "epoch": 2, "layer": 3}
    kernels.dropout_nodes(x, out, torch.arange(7), **given)
    mask = torch.empty(7, width)
    kernels.dropout_nodes(torch.ones(7, width), mask, torch.arange(7), **given)
    assert torch.equal(out, (x.float() * mask).to(dtype))


@pytest.mark.parametrize("kind", HALF_PRECISION)
@pytest.mark.parametrize(("heads", "channels"), [(2, 64), (3, 10), (1, 47), (4, 8), (1, 300)])
def test_attention_in_half_precision(heads, channels, kind):
    """The same as float32 attention of the rounded numbers, to float32 rounding."""
    edges = random_edges(11, 8, 60)
    columns, width = 8, heads * channels
    z, g = matrix(8, width, kind, 1, pad=0), matrix(11, width, kind, 5, pad=0)
    zr, att = matrix(11, width, kind, 6, pad=0), matrix(heads, channels, torch.float32, 7, pad=0)
    s, t = matrix(8, heads, torch.float32, 2), matrix(11, heads, torch.float32, 3)
    reverse = kernels.transpose(edges.block, 11)

    def run(as_type):
        found, scoring = [], kernels.Scoring(slope=0.2)
        for which in (1, 2):
            softmax = kernels.RunningSoftmax.zeros(
                11, heads, width, dtype=torch.float32, device=g.device
            )
            grad_z = torch.zeros(columns, width)
            sources = kernels.Sources(z.to(as_type), s)
            inputs = kernels.Projections(z.to(as_type), zr.to(as_type), att)
            if which == 1:
                kernels.gat_forward(edges.block, sources, t, softmax, scoring)
            else:
                kernels.gatv2_forward(edges.block, inputs, softmax, scoring)
            seen, out = softmax.row_sum > 0, softmax.out
            lse = torch.where(seen, softmax.row_max + softmax.row_sum.log(), 0)
            out /= torch.where(seen, softmax.row_sum, 1).repeat_interleave(channels, 1)
            d = (g.float() * out).view(11, heads, channels).sum(2)
            found += [out, grad_z]
            if which == 1:
                grads = torch.zeros(columns, heads), torch.zeros(11, heads)
                gradients = kernels.GATGradients(grad_z, *grads)
                destinations = kernels.Destinations(g.to(as_type), t, lse, d)
                kernels.gat_backward(reverse, destinations, sources, gradients, scoring)
            else:
                grads = torch.zeros(11, width), torch.zeros(heads, channels)
                result = kernels.ResultGradient(g.to(as_type), lse, d)
                gradients = kernels.GATv2Gradients(grad_z, *grads)
                kernels.gatv2_backward(edges.block, inputs, result, gradients, scoring)
            found += grads
        return found

    for half, wide in zip(run(kind), run(torch.float32), strict=True):
        assert torch.allclose(half, wide, atol=1e-4 * float(wide.abs().max()))


def test_every_kernel_of_the_self_test(monkeypatch):
    """The kernels that `hpcgnn doctor` compares on a GPU; a wrong one is named."""
    cpu = torch.device("cpu")
    emulated, honest = selftest.results(cpu), selftest.results
    monkeypatch.undo()
    compiled = honest(cpu)
    for wrong in ({}, {"gat": torch.inf}):
        given = iter([emulated, compiled])
        monkeypatch.setattr(selftest, "results", lambda device, given=given: next(given))
        assert selftest.differences(cpu) == wrong
        emulated["gat"][2][0, 0] = torch.nan


@pytest.mark.parametrize(("heads", "channels", "count"), [(3, 8, 17), (4, 32, 5), (1, 150, 3)])
def test_head_dots(heads, channels, count):
    for dtype in DTYPES:
        heads_of.test_head_dots(dtype, heads, channels, count)
        heads_of.test_head_scores(dtype, heads, channels, count)


@pytest.mark.parametrize("width", [1, 8, 33])
def test_rows_are_scaled(width, short_rows):
    for dtype in DTYPES:
        sums.test_scaled_rows_equal_rows_multiplied_before(width, dtype)


@pytest.mark.parametrize("width", [1, 8, 33])
def test_sums_are_scaled_as_they_are_written(width, short_rows):
    sums.scaled_as_they_are_written(width, torch.device("cpu"))


def test_sums_can_overwrite_rows(short_rows):
    for listed in (False, True):
        edges = random_edges(30, 9, 150, weighted=True, listed_rows=listed)
        x, out = matrix(9, 12, torch.float32, 1), torch.full((30, 12), torch.nan)
        rows = slice(None) if edges.block.rows is None else edges.block.rows.long()
        kernels.spmm(edges.block, x, out, adds=False)
        expected = torch.zeros(30, 12)
        kernels.spmm(edges.block, x, expected)
        assert torch.equal(out[rows], expected[rows])
        assert int(out.isnan().any(1).sum()) == (30 - len(rows.unique()) if listed else 0)
    empty = random_edges(5, 0, 0)
    out = torch.full((5, 3), torch.nan)
    kernels.spmm(empty.block, torch.zeros(0, 3), out, adds=False)
    assert torch.equal(out, torch.zeros(5, 3))


class Launches(TorchDispatchMode):
    """Counts the operations of torch that would be launched on a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if is_launch(func):
            self.names.append(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("matrices", [1, 3])
def test_a_message_is_packed_in_one_launch(emulated, matrices):
    draw = [matrix(20, 4, torch.float32, seed) for seed in range(matrices)]
    payload = Payload((matrix(20, 8, torch.float32, 9, pad=0),), torch.float32, tuple(draw))
    rows = torch.tensor([3, 19, 0, 7], dtype=torch.int32)
    out = torch.zeros(4, payload.layout.columns)
    payload.pack(rows, out)
    assert len(emulated.launched) == 1
    for found, given in zip(payload.unpack(out), payload.local, strict=True):
        assert torch.equal(found, given[rows.long()])


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_rows_of_a_message_are_read_in_wide_words(heads):
    for dtype, wide in ((torch.float32, 4), (torch.bfloat16, 8)):
        layout = RowLayout(8 * heads, 3 * heads, dtype, in_words=True)
        message = torch.zeros(3, layout.columns, dtype=dtype)
        assert shapes.vector_width(8, (layout.features(message),)) == wide
        assert layout.scalars(message).shape == (3, 3 * heads)
    assert RowLayout(7 * heads, 3 * heads, torch.float32, in_words=True).columns == 10 * heads


def test_a_message_takes_few_launches_in_backward(emulated):
    """From the packed rows of GAT to the gradients of their scores."""
    problem = attention.GAT(random_edges(11, 8, 60), 4, 8, torch.float32)
    _, lse = problem.forward()
    block, given = problem.backward_block(), problem.inputs
    scalars = (given["t"], lse, torch.zeros_like(lse))
    payload = Payload((problem.g.contiguous(),), torch.float32, scalars)
    message = torch.empty(11, payload.layout.columns)
    sources = kernels.Sources(given["z"], given["s"])
    grads = kernels.GATGradients(*(torch.zeros_like(given[name]) for name in ("z", "s", "t")))

    def differentiate():
        destinations = kernels.Destinations(*payload.unpack(message))
        kernels.gat_backward(block, destinations, sources, grads, problem.scoring)

    rows = torch.arange(11, dtype=torch.int32)
    payload.pack(rows, message)
    differentiate()  # derived data, which is computed once for all messages
    emulated.launched.clear()
    with Launches() as operations:
        payload.pack(rows, message)
        differentiate()
    assert len(emulated.launched) + len(operations.names) <= 6, (
        emulated.launched,
        operations.names,
    )


@pytest.mark.parametrize(("heads", "channels", "p"), [(4, 8, 0.0), (3, 5, 0.4), (1, 150, 0.0)])
def test_self_loops_come_with_the_first_edges(short_rows, heads, channels, p):
    passes.loops_come_with_the_first_edges(heads, channels, p, torch.device("cpu"))


@pytest.mark.parametrize(("heads", "channels"), [(4, 8), (3, 5), (2, 150)])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_the_end_of_attention_is_one_pass(heads, channels, p):
    passes.ends_in_one_pass(heads, channels, p, torch.device("cpu"))
