from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from tests.kernels.blocks import Edges, matrix, random_edges

SLOPE = 0.2
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
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
    """Inputs of one attention layer and what the kernels make of them."""

    edges: Edges
    heads: int
    channels: int
    dtype: torch.dtype
    scale: float = 1.0
    dropout: kernels.EdgeDropout | None = None
    inputs: dict[str, Tensor] = field(init=False)

    def __post_init__(self):
        columns, rows = self.edges.block.num_columns, self.edges.num_rows
        width = self.heads * self.channels
        self.inputs = {
            "z": matrix(columns, width, self.dtype, 1),
            "s": matrix(columns, self.heads, self.dtype, 2) * self.scale,
            "t": matrix(rows, self.heads, self.dtype, 3) * self.scale,
        }
        if self.edges.block.features is not None:
            depth = self.edges.block.features.shape[1]
            self.inputs["edge_vector"] = matrix(self.heads, depth, self.dtype, 4)
        self.g = matrix(rows, width, self.dtype, 5)

    @property
    def edge_vector(self):
        return self.inputs.get("edge_vector")

    def forward(self, ranges=None, pieces=None):
        """Result and log-sum-exp, block by block of columns and piece by piece of rows."""
        block, rows = self.edges.block, self.edges.num_rows
        top = torch.full((rows, self.heads), -float("inf"), dtype=self.dtype)
        total = torch.zeros(rows, self.heads, dtype=self.dtype)
        out = torch.zeros(rows, self.heads * self.channels, dtype=self.dtype)
        for low, high in ranges or [(0, block.num_columns)]:
            part = kernels.columns_between(block, low, high)
            dropout = self.dropout and kernels.EdgeDropout(
                **(vars(self.dropout) | {"source_ids": self.dropout.source_ids[low:high]})
            )
            for piece in pieces(part.num_rows) if pieces else [None]:
                kernels.gat_forward(
                    part,
                    self.inputs["z"][low:high],
                    self.inputs["s"][low:high],
                    self.inputs["t"],
                    *(top, total, out),
                    slope=SLOPE,
                    dropout=dropout,
                    edge_vector=self.edge_vector,
                    rows=piece,
                )
        seen = total > 0
        lse = torch.where(seen, top + total.log(), 0)
        divisor = torch.where(seen, total, 1).repeat_interleave(self.channels, 1)
        return out / divisor, lse

    def backward(self, result, lse, pieces=None):
        reverse = kernels.transpose(self.edges.block, self.edges.num_rows)
        shape = (-1, self.heads, self.channels)
        d = (self.g.reshape(shape) * result.reshape(shape)).sum(2)
        grads = {name: torch.zeros_like(tensor) for name, tensor in self.inputs.items()}
        for piece in pieces(reverse.num_rows) if pieces else [None]:
            kernels.gat_backward(
                reverse,
                *(self.g, self.inputs["t"], lse, d, self.inputs["z"], self.inputs["s"]),
                *(grads["z"], grads["s"], grads["t"]),
                slope=SLOPE,
                dropout=self.dropout,
                edge_vector=self.edge_vector,
                grad_edge_vector=grads.get("edge_vector"),
                rows=piece,
            )
        return grads

    def reference(self, mask=None):
        """Result and gradients by autograd in double precision."""
        edges, heads = self.edges, self.heads
        leaf = {name: x.double().clone().requires_grad_() for name, x in self.inputs.items()}
        score = leaf["s"][edges.source] + leaf["t"][edges.target]
        if self.edge_vector is not None:
            score = score + edges.block.features.double() @ leaf["edge_vector"].T
        score = torch.nn.functional.leaky_relu(score, SLOPE)
        index = edges.target[:, None].expand(-1, heads)
        top = torch.zeros(edges.num_rows, heads, dtype=torch.float64)
        top = top.scatter_reduce(0, index, score.detach(), "amax", include_self=False)
        weight = (score - top[edges.target]).exp()
        total = torch.zeros_like(top).index_add(0, edges.target, weight)
        weight = weight / total[edges.target]
        if mask is not None:
            weight = weight * mask
        z = leaf["z"].reshape(-1, heads, self.channels)[edges.source]
        result = torch.zeros(edges.num_rows, heads, self.channels, dtype=torch.float64)
        result = result.index_add(0, edges.target, weight[:, :, None] * z).flatten(1)
        grads = torch.autograd.grad(result, list(leaf.values()), self.g.double())
        return result.detach(), dict(zip(leaf, grads, strict=True))


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        limit = tolerance * max(1, float(value.detach().abs().max()))
        assert float((found[name].double() - value).abs().max()) < limit, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), SHAPES)
def test_agrees_with_autograd_at_every_shape(heads, channels, dtype):
    for depth in (0, 3):
        edges = random_edges(11, 8, 50, seed=heads, feature_width=depth, listed_rows=depth == 3)
        problem = Problem(edges, heads, channels, dtype)
        result, lse = problem.forward()
        expected, gradients = problem.reference()
        agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
        agree(problem.backward(result, lse), gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("degree", [1, 15, 16, 17, 63, 64, 65, 200])
def test_rows_of_every_length(degree, dtype):
    edges = random_edges(1, 40, degree, seed=degree)
    problem = Problem(edges, 3, 5, dtype, scale=3)
    result, lse = problem.forward()
    expected, gradients = problem.reference()
    agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
    agree(problem.backward(result, lse), gradients, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_extreme_scores(scale):
    problem = Problem(random_edges(20, 15, 200), 4, 8, torch.float32, scale=scale)
    result, lse = problem.forward(ranges=[(0, 3), (3, 9), (9, 15)])
    expected, _ = problem.reference()
    agree({"result": result}, {"result": expected}, 1e-5)
    assert all(torch.isfinite(grad).all() for grad in problem.backward(result, lse).values())


def test_rows_without_edges_stay_as_they_were():
    block = random_edges(4, 3, 0).block
    top, total, out = torch.full((4, 2), -float("inf")), torch.zeros(4, 2), torch.zeros(4, 6)
    z, s, t = torch.ones(3, 6), torch.ones(3, 2), torch.ones(4, 2)
    kernels.gat_forward(block, z, s, t, top, total, out, slope=SLOPE)
    assert torch.equal(top, torch.full((4, 2), -float("inf")))
    assert not total.any()
    assert not out.any()


def test_not_a_number_is_passed_on():
    problem = Problem(random_edges(5, 4, 20), 2, 3, torch.float32)
    problem.inputs["s"][0, 0] = float("nan")
    result, _ = problem.forward()
    assert torch.isnan(result[problem.edges.target[problem.edges.source == 0], 0]).all()


def with_dropout(p: float, dtype: torch.dtype = torch.float32, depth: int = 0) -> Problem:
    edges = random_edges(30, 25, 300, feature_width=depth)
    ids = torch.randperm(1000)
    dropout = kernels.EdgeDropout(p, 3, 2, 1, ids[:25].clone(), ids[100:130].clone())
    return Problem(edges, 4, 8, dtype, dropout=dropout)


def mask_of(problem: Problem) -> Tensor:
    """mask / (1 - p) of every edge, read off by giving each edge a destination of its own."""
    edges, count = problem.edges, len(problem.edges.source)
    block = random_edges(count, edges.block.num_columns, 0).block
    alone = type(block)(
        0,
        block.num_columns,
        None,
        torch.arange(count),
        torch.arange(count) + 1,
        edges.block.columns,
    )
    ids = problem.dropout.destination_ids[edges.target]
    out = torch.zeros(count, problem.heads)
    kernels.gat_forward(
        alone,
        torch.ones(block.num_columns, problem.heads),
        torch.zeros(block.num_columns, problem.heads),
        torch.zeros(count, problem.heads),
        torch.full((count, problem.heads), -float("inf")),
        torch.zeros(count, problem.heads),
        out,
        slope=SLOPE,
        dropout=kernels.EdgeDropout(**(vars(problem.dropout) | {"destination_ids": ids})),
    )
    return out.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [0, 2])
def test_dropout_agrees_with_autograd_under_its_mask(depth, dtype):
    problem = with_dropout(0.4, dtype, depth)
    mask = mask_of(problem)
    assert 0.3 < (mask == 0).double().mean() < 0.5
    result, lse = problem.forward()
    expected, gradients = problem.reference(mask)
    tolerance = max(TOLERANCE[dtype], 1e-7)  # the mask's 1 / (1 - p) was read off in float32
    agree({"result": result}, {"result": expected}, tolerance)
    agree(problem.backward(result, lse), gradients, tolerance)


def test_dropout_is_the_same_in_every_partition_of_the_edges():
    problem = with_dropout(0.5)
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
    kept = (mask_of(Problem(edges, heads, 1, torch.float32, dropout=dropout)) > 0).double()
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


def test_zero_probability_is_exact():
    problem = with_dropout(0.0)
    plain = Problem(problem.edges, 4, 8, torch.float32)
    assert torch.equal(problem.forward()[0], plain.forward()[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_runs_are_bitwise_the_same_and_pieces_agree(threads):
    edges = random_edges(60, 50, 900, feature_width=2)
    problem = Problem(edges, 4, 32, torch.float32)
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
    finally:
        torch.set_num_threads(before)
    expected, gradients = problem.reference()
    agree({"result": result}, {"result": expected}, 1e-5)
    agree(grads, gradients, 1e-5)
    agree(pieces, gradients, 1e-5)


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


def test_what_does_not_fit_is_refused():
    block = random_edges(6, 4, 20, feature_width=2).block
    z, s, t = torch.zeros(4, 6), torch.zeros(4, 2), torch.zeros(6, 2)
    top, total, out = torch.zeros(6, 2), torch.zeros(6, 2), torch.zeros(6, 6)
    good = {"z": z, "s": s, "t": t, "top": top, "total": total, "out": out}
    ids = torch.arange(6)
    for wrong in [
        {"z": z[:, :5]},
        {"z": z.double()},
        {"s": s[:3]},
        {"t": t[:5]},
        {"top": top.double()},
        {"out": out[:, :4]},
        {"edge_vector": torch.zeros(2, 3)},
        {"dropout": kernels.EdgeDropout(1.0, 0, 0, 0, ids, ids)},
        {"dropout": kernels.EdgeDropout(0.5, 0, 0, 0, ids[:3], ids)},
        {"rows": (3, 9)},
    ]:
        tensors = [wrong.get(name, tensor) for name, tensor in good.items()]
        options = {name: value for name, value in wrong.items() if name not in good}
        with pytest.raises(InputError):
            kernels.gat_forward(block, *tensors, slope=SLOPE, **options)
