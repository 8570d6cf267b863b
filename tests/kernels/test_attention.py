"""GAT and GATv2 against autograd in double precision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.kernels.block import Block
from tests.kernels.blocks import Edges, matrix, random_edges

SLOPE = 0.2
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
DTYPES = [torch.float32, torch.float64]
SHAPES = [
    *((heads, channels) for heads in range(1, 10) for channels in (1, 3, 8)),
    *((4, channels) for channels in (2, 5, 7, 16, 17, 31, 32, 33, 40, 64, 100, 128, 257)),
    (1, 128),
    (1, 300),
    (2, 64),
    (3, 47),
    (5, 16),
    (6, 32),
    (8, 32),
    (12, 6),
    (17, 4),
]


@dataclass
class Problem:
    """Inputs of one attention layer, and the results of the kernels."""

    edges: Edges
    heads: int
    channels: int
    dtype: torch.dtype
    scale: float = 1.0
    dropout: kernels.EdgeDropout | None = None
    inputs: dict[str, Tensor] = field(init=False)

    def __post_init__(self):
        columns, rows = self.edges.block.num_columns, self.edges.num_rows
        self.inputs = self.make_inputs(columns, rows, self.edges.block.features)
        self.g = matrix(rows, self.heads * self.channels, self.dtype, 5)

    def forward(self, ranges=None, pieces=None):
        """Return result and log-sum-exp, one block of columns and one piece of rows at a time."""
        block = self.edges.block
        softmax = kernels.RunningSoftmax.zeros(
            self.edges.num_rows,
            self.heads,
            self.heads * self.channels,
            dtype=self.dtype,
            device=block.device,
        )
        for low, high in ranges or [(0, block.num_columns)]:
            part = kernels.columns_between(block, low, high)
            ids = self.dropout and self.dropout.source_ids[low:high]
            dropout = self.dropout and replace(self.dropout, source_ids=ids)
            scoring = replace(self.scoring, dropout=dropout)
            for piece in pieces(part.num_rows) if pieces else [None]:
                self.run_forward(part, slice(low, high), softmax, scoring, piece)
        seen = softmax.row_sum > 0
        lse = torch.where(seen, softmax.row_max + softmax.row_sum.log(), 0)
        divisor = torch.where(seen, softmax.row_sum, 1).repeat_interleave(self.channels, 1)
        return softmax.out / divisor, lse

    def backward(self, result, lse, pieces=None):
        shape = (-1, self.heads, self.channels)
        d = (self.g.reshape(shape) * result.reshape(shape)).sum(2)
        block = self.backward_block()
        grads = {name: torch.zeros_like(tensor) for name, tensor in self.inputs.items()}
        self.run_backward(block, lse, d, grads, pieces or (lambda count: [(0, count)]))
        return grads

    @property
    def scoring(self):
        return kernels.Scoring(SLOPE, self.dropout, self.inputs.get("edge_weight"))

    def reference(self, mask=None):
        """Return result and gradients by autograd in double precision."""
        edges, heads = self.edges, self.heads
        leaf = {name: x.double().clone().requires_grad_() for name, x in self.inputs.items()}
        score, z = self.reference_scores(leaf)
        index = edges.target[:, None].expand(-1, heads)
        row_max = torch.zeros(edges.num_rows, heads, dtype=torch.float64)
        row_max = row_max.scatter_reduce(0, index, score.detach(), "amax", include_self=False)
        weight = (score - row_max[edges.target]).exp()
        row_sum = torch.zeros_like(row_max).index_add(0, edges.target, weight)
        weight = weight / row_sum[edges.target]
        if mask is not None:
            weight = weight * mask
        z = z.reshape(-1, heads, self.channels)[edges.source]
        result = torch.zeros(edges.num_rows, heads, self.channels, dtype=torch.float64)
        result = result.index_add(0, edges.target, weight[:, :, None] * z).flatten(1)
        grads = torch.autograd.grad(result, list(leaf.values()), self.g.double())
        return result.detach(), dict(zip(leaf, grads, strict=True))


class GAT(Problem):
    def make_inputs(self, columns, rows, features):
        inputs = {
            "z": matrix(columns, self.heads * self.channels, self.dtype, 1),
            "s": matrix(columns, self.heads, self.dtype, 2) * self.scale,
            "t": matrix(rows, self.heads, self.dtype, 3) * self.scale,
        }
        if features is not None:
            inputs["edge_weight"] = matrix(self.heads, features.shape[1], self.dtype, 4)
        return inputs

    def run_forward(self, part, columns, softmax, scoring, piece):
        sources = kernels.Sources(self.inputs["z"][columns], self.inputs["s"][columns])
        kernels.gat_forward(part, sources, self.inputs["t"], softmax, scoring, rows=piece)

    def backward_block(self):
        return kernels.transpose(self.edges.block, self.edges.num_rows)

    def run_backward(self, block, lse, d, grads, pieces):
        total = torch.zeros_like(grads["t"], dtype=torch.float64)
        sums = kernels.ThreadSums(total)
        for piece in pieces(block.num_rows):
            kernels.gat_backward(
                block,
                kernels.Destinations(self.g, self.inputs["t"], lse, d),
                kernels.Sources(self.inputs["z"], self.inputs["s"]),
                kernels.GATGradients(**(grads | {"t": sums.parts})),
                self.scoring,
                rows=piece,
            )
        sums.add_up()
        grads["t"] += total

    def reference_scores(self, leaf):
        score = leaf["s"][self.edges.source] + leaf["t"][self.edges.target]
        if "edge_weight" in leaf:
            score = score + self.edges.block.features.double() @ leaf["edge_weight"].T
        return torch.nn.functional.leaky_relu(score, SLOPE), leaf["z"]


class GATv2(Problem):
    def make_inputs(self, columns, rows, features):
        width = self.heads * self.channels
        inputs = {
            "zl": matrix(columns, width, self.dtype, 1),
            "zr": matrix(rows, width, self.dtype, 2),
            "att": matrix(self.heads, self.channels, self.dtype, 3, pad=0) * self.scale,
        }
        if features is not None:
            inputs["edge_weight"] = matrix(features.shape[1], width, self.dtype, 4, pad=0)
        return inputs

    def projections(self, columns):
        zl, zr, att = (self.inputs[name] for name in ("zl", "zr", "att"))
        return kernels.Projections(zl[columns], zr, att)

    def run_forward(self, part, columns, softmax, scoring, piece):
        kernels.gatv2_forward(part, self.projections(columns), softmax, scoring, rows=piece)

    def backward_block(self):
        return self.edges.block

    def run_backward(self, block, lse, d, grads, pieces):
        kernels.gatv2_backward(
            block,
            self.projections(slice(None)),
            kernels.ResultGradient(self.g, lse, d),
            kernels.GATv2Gradients(**grads),
            self.scoring,
            pieces=lambda part: pieces(part.num_rows),
        )

    def reference_scores(self, leaf):
        inner = leaf["zl"][self.edges.source] + leaf["zr"][self.edges.target]
        if "edge_weight" in leaf:
            inner = inner + self.edges.block.features.double() @ leaf["edge_weight"]
        inner = torch.nn.functional.leaky_relu(inner, SLOPE)
        return (inner.reshape(-1, self.heads, self.channels) * leaf["att"]).sum(2), leaf["zl"]


KINDS = [GAT, GATv2]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        limit = tolerance * max(1, float(value.detach().abs().max()))
        assert float((found[name].double() - value).abs().max()) < limit, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), SHAPES)
@both_kinds
def test_agrees_with_autograd_at_every_shape(kind, heads, channels, dtype):
    for depth in (0, 3):
        edges = random_edges(11, 8, 60, seed=heads, feature_width=depth, listed_rows=depth == 3)
        problem = kind(edges, heads, channels, dtype)
        result, lse = problem.forward()
        expected, gradients = problem.reference()
        agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
        agree(problem.backward(result, lse), gradients, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("degree", [1, 15, 16, 17, 63, 64, 65, 200])
@both_kinds
def test_rows_of_every_length(kind, degree, dtype):
    edges = random_edges(1, 40, degree, seed=degree)
    problem = kind(edges, 3, 5, dtype, scale=3)
    result, lse = problem.forward()
    expected, gradients = problem.reference()
    agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
    agree(problem.backward(result, lse), gradients, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize(("heads", "channels"), SHAPES)
def test_rows_in_bfloat16_equal_the_same_rows_in_float32(heads, channels):
    edges = random_edges(20, 15, 200, seed=channels, feature_width=2)
    problem = GAT(edges, heads, channels, torch.float32)
    z, g, found = problem.inputs["z"].bfloat16(), problem.g.bfloat16(), []
    for wide in (False, True):
        problem.inputs["z"], problem.g = (z.float(), g.float()) if wide else (z, g)
        result, lse = problem.forward()
        d = (g.float() * result).reshape(-1, heads, channels).sum(2)
        grads = {name: torch.zeros_like(x).float() for name, x in problem.inputs.items()}
        problem.run_backward(problem.backward_block(), lse, d, grads, lambda n: [(0, n)])
        found.append([result, lse, *grads.values()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("scale", [1e4, 1e-30])
@both_kinds
def test_extreme_scores(kind, scale):
    problem = kind(random_edges(20, 15, 200), 4, 8, torch.float32, scale=scale)
    result, lse = problem.forward(ranges=[(0, 3), (3, 9), (9, 15)])
    if kind is GAT:  # scores of GATv2 are sums rounded to float32, so 1e-5 is too strict
        agree({"result": result}, {"result": problem.reference()[0]}, 1e-5)
    assert all(torch.isfinite(grad).all() for grad in problem.backward(result, lse).values())


def of_zeros(rows: int, heads: int, channels: int, dtype=torch.float32) -> kernels.RunningSoftmax:
    return kernels.RunningSoftmax.zeros(
        rows, heads, heads * channels, dtype=dtype, device=torch.device("cpu")
    )


def test_rows_without_edges_stay_as_they_were():
    block, softmax = random_edges(4, 3, 0).block, of_zeros(4, 2, 3)
    sources, t = kernels.Sources(torch.ones(3, 6), torch.ones(3, 2)), torch.ones(4, 2)
    kernels.gat_forward(block, sources, t, softmax, kernels.Scoring(SLOPE))
    assert torch.equal(softmax.row_max, torch.full((4, 2), -torch.inf))
    assert not softmax.row_sum.any()
    assert not softmax.out.any()


def test_not_a_number_is_passed_on():
    problem = GAT(random_edges(5, 4, 20), 2, 3, torch.float32)
    problem.inputs["s"][0, 0] = float("nan")
    result, _ = problem.forward()
    assert torch.isnan(result[problem.edges.target[problem.edges.source == 0], 0]).all()


def with_dropout(kind, p: float, dtype: torch.dtype = torch.float32, depth: int = 0) -> Problem:
    edges = random_edges(30, 25, 300, feature_width=depth)
    ids = torch.randperm(1000)
    dropout = kernels.EdgeDropout(p, 3, 2, 1, ids[:25].clone(), ids[100:130].clone())
    return kind(edges, 4, 8, dtype, dropout=dropout)


def mask_of(problem: Problem) -> Tensor:
    """Return mask / (1 - p) of every edge, as GAT shows it if each edge has a separate row."""
    edges, count, heads = problem.edges, len(problem.edges.source), problem.heads
    columns, begin = edges.block.num_columns, torch.arange(count)
    alone = Block(0, columns, None, begin, begin + 1, edges.block.columns)
    ids = problem.dropout.destination_ids[edges.target]
    dropout = replace(problem.dropout, destination_ids=ids)
    softmax = of_zeros(count, heads, 1, torch.float64)
    sources = kernels.Sources(
        torch.ones(columns, heads, dtype=torch.float64),
        torch.zeros(columns, heads, dtype=torch.float64),
    )
    t, scoring = torch.zeros_like(softmax.row_max), kernels.Scoring(SLOPE, dropout)
    kernels.gat_forward(alone, sources, t, softmax, scoring)
    return softmax.out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [0, 2])
@both_kinds
def test_dropout_agrees_with_autograd_under_its_mask(kind, depth, dtype):
    problem = with_dropout(kind, 0.4, dtype, depth)
    mask = mask_of(problem)
    assert 0.3 < (mask == 0).double().mean() < 0.5
    result, lse = problem.forward()
    expected, gradients = problem.reference(mask)
    agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
    agree(problem.backward(result, lse), gradients, TOLERANCE[dtype])


@both_kinds
def test_dropout_is_the_same_in_every_partition_of_the_edges(kind):
    problem = with_dropout(kind, 0.5)
    result, _ = problem.forward()
    again, _ = problem.forward(
        ranges=[(0, 1), (1, 7), (7, 25)], pieces=lambda n: [(0, n // 3), (n // 3, n)]
    )
    assert torch.allclose(result, again, atol=1e-5)


def test_dropout_is_unbiased_and_differs_between_heads_and_directions():
    count, heads, p = 20_000, 4, 0.3
    ids = torch.arange(200)
    edges = random_edges(200, 200, count)
    dropout = kernels.EdgeDropout(p, 1, 0, 0, ids, ids)
    kept = (mask_of(GAT(edges, heads, 1, torch.float32, dropout=dropout)) > 0).double()
    first = torch.unique(edges.source * 200 + edges.target, return_inverse=True)[1]
    distinct = torch.zeros(int(first.max()) + 1, heads, dtype=torch.float64)
    distinct[first] = kept
    centred = (distinct - (1 - p)) / (p * (1 - p)) ** 0.5
    assert centred.mean(0).abs().max() * len(distinct) ** 0.5 < 5
    correlation = centred.T @ centred / len(distinct)
    assert (correlation - torch.diag(correlation.diag())).abs().max() * len(distinct) ** 0.5 < 5
    table = torch.full((200, 200, heads), float("nan"), dtype=torch.float64)
    table[edges.source, edges.target] = (kept - (1 - p)) / (p * (1 - p)) ** 0.5
    pairs = (table * table.transpose(0, 1))[torch.ones(200, 200).triu(1).bool()]
    pairs = pairs[~pairs.isnan()]
    assert pairs.mean().abs() * len(pairs) ** 0.5 < 5


@both_kinds
def test_zero_probability_is_exact(kind):
    problem = with_dropout(kind, 0.0)
    plain = kind(problem.edges, 4, 8, torch.float32)
    assert torch.equal(problem.forward()[0], plain.forward()[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
@both_kinds
def test_two_runs_are_bitwise_the_same_and_pieces_agree(kind, threads):
    edges = random_edges(60, 50, 900, feature_width=2, listed_rows=kind is GATv2)
    problem = kind(edges, 4, 32, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result, lse = problem.forward()
        grads = problem.backward(result, lse)
        again, _ = problem.forward()
        assert torch.equal(result, again)
        for name, grad in problem.backward(result, lse).items():
            assert torch.equal(grad, grads[name]), name
        pieces = problem.backward(result, lse, pieces=lambda n: [(0, 1), (1, 1), (1, 7), (7, n)])
        parts, _ = problem.forward(ranges=[(0, 4), (4, 4), (4, 50)])
    finally:
        torch.set_num_threads(before)
    expected, gradients = problem.reference()
    for found in (result, parts):
        agree({"result": found}, {"result": expected}, 1e-5)
    for found in (grads, pieces):
        agree(found, gradients, 1e-5)


GAT_INPUTS = {"z": (4, 6), "s": (4, 2), "t": (6, 2)}
GATV2_INPUTS = {"zl": (4, 6), "zr": (6, 6), "att": (2, 3)}
SUMS = {"row_max": (6, 2), "row_sum": (6, 2), "out": (6, 6)}
IDS = torch.arange(6)


def refused(shapes: dict[str, tuple[int, int]], wrong: dict[str, object]) -> None:
    """Check that InputError is raised if an input, sum or option is replaced by one of `wrong`."""
    block = random_edges(6, 4, 20, feature_width=2).block
    given = {name: torch.zeros(shape) for name, shape in (shapes | SUMS).items()} | wrong
    softmax = kernels.RunningSoftmax(given["row_max"], given["row_sum"], given["out"])
    scoring = kernels.Scoring(SLOPE, given.get("dropout"), given.get("edge_weight"))
    with pytest.raises(InputError):
        if shapes is GAT_INPUTS:
            sources = kernels.Sources(given["z"], given["s"])
            kernels.gat_forward(
                block, sources, given["t"], softmax, scoring, rows=given.get("rows")
            )
        else:
            inputs = kernels.Projections(given["zl"], given["zr"], given["att"])
            kernels.gatv2_forward(block, inputs, softmax, scoring, rows=given.get("rows"))


def test_what_does_not_fit_is_refused():
    for wrong in [
        {"z": torch.zeros(4, 5)},
        {"z": torch.zeros(4, 6, dtype=torch.float64)},
        {"s": torch.zeros(3, 2)},
        {"t": torch.zeros(5, 2)},
        {"edge_weight": torch.zeros(2, 3)},
    ]:
        refused(GAT_INPUTS, wrong)
    for wrong in [
        {"zl": torch.zeros(3, 6)},
        {"zl": torch.zeros(4, 6, dtype=torch.float64)},
        {"zr": torch.zeros(5, 6)},
        {"att": torch.zeros(2, 2)},
        {"att": torch.zeros(3, 2).T},
        {"att": torch.zeros(2, 3, dtype=torch.float64)},
        {"edge_weight": torch.zeros(2, 5)},
    ]:
        refused(GATV2_INPUTS, wrong)
    for wrong in [
        {"row_max": torch.zeros(6, 2, dtype=torch.float64)},
        {"out": torch.zeros(6, 4)},
        {"dropout": kernels.EdgeDropout(1.0, 0, 0, 0, IDS, IDS)},
        {"dropout": kernels.EdgeDropout(0.5, 0, 0, 0, IDS[:3], IDS)},
        {"rows": (3, 9)},
    ]:
        refused(GAT_INPUTS, wrong)
        refused(GATV2_INPUTS, wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "channels"), [(4, 32), (4, 128), (3, 47), (1, 5)])
def test_self_loops_in_the_same_pass_equal_a_separate_block(heads, channels, dtype):
    """Forward starts from rows of z, and backward overwrites instead of adding."""
    count, width = 40, heads * channels
    # A hub with more edges than are summed in float32, and rows without edges.
    block = random_edges(count, count, 700).block
    block.end[7] = block.begin[7]
    assert bool((block.begin == block.end).any()) and int((block.end - block.begin).max()) > 128
    z, g = (matrix(count, width, torch.float32, seed).to(dtype) for seed in (1, 5))
    s, t, d = (matrix(count, heads, torch.float32, seed) for seed in (2, 3, 4))
    sources, scoring = kernels.Sources(z, s), kernels.Scoring(SLOPE)

    def forward(out, start):
        first = torch.nn.functional.leaky_relu(s + t, SLOPE)
        softmax = kernels.RunningSoftmax(first, torch.ones_like(first), out, start)
        kernels.gat_forward(block, sources, t, softmax, scoring)
        return softmax

    copied = forward(z.float().clone(), None)
    started = forward(torch.full((count, width), torch.nan), z)
    for name in ("row_max", "row_sum", "out"):
        assert torch.equal(getattr(started, name), getattr(copied, name))

    lse = copied.row_max + copied.row_sum.log()
    pointer = torch.arange(count + 1)
    self_loops = Block(0, count, None, pointer[:-1], pointer[1:], pointer[:-1].to(torch.int32))

    def backward(blocks, grads):
        for one in blocks:
            destinations = kernels.Destinations(g, t, lse, d)
            kernels.gat_backward(one, destinations, sources, grads, scoring)
        return grads

    def zeros():
        scalars = torch.zeros(count, heads), torch.zeros(count, heads, dtype=torch.float64)
        return kernels.GATGradients(torch.zeros(count, width), *scalars)

    def unset(**settings):
        return replace(zeros(), z=torch.full((count, width), torch.nan), adds=False, **settings)

    alone, at_once = backward([block], zeros()), backward([block], unset())
    assert all(torch.equal(getattr(alone, n), getattr(at_once, n)) for n in "zst")
    apart, together = (
        backward([self_loops, block], zeros()),
        backward([block], unset(self_loops=True)),
    )
    for name in "zst":
        torch.testing.assert_close(getattr(together, name), getattr(apart, name))
    with pytest.raises(InputError, match="loops"):
        backward([kernels.columns_between(block, 0, count - 1)], unset(self_loops=True))
