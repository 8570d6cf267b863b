from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from tests.kernels.blocks import Edges, matrix, random_edges

SLOPE = 0.2
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
DTYPES = [torch.float32, torch.float64]
SHAPES = [
    *((heads, channels) for heads in (1, 2, 3, 5, 8, 9) for channels in (1, 3, 8)),
    *((4, channels) for channels in (2, 5, 7, 16, 17, 31, 32, 33, 64, 100, 257)),
    (1, 128),
    (2, 64),
    (3, 47),
    (8, 16),
    (12, 6),
]


@dataclass
class Problem:
    """Inputs of one GATv2 layer and what the kernels make of them."""

    edges: Edges
    heads: int
    channels: int
    dtype: torch.dtype
    dropout: kernels.EdgeDropout | None = None
    inputs: dict[str, Tensor] = field(init=False)

    def __post_init__(self):
        columns, rows = self.edges.block.num_columns, self.edges.num_rows
        width, depth = self.heads * self.channels, self.edges.block.features
        self.inputs = {
            "zl": matrix(columns, width, self.dtype, 1),
            "zr": matrix(rows, width, self.dtype, 2),
            "att": matrix(self.heads, self.channels, self.dtype, 3, pad=0),
        }
        if depth is not None:
            self.inputs["edge_matrix"] = matrix(depth.shape[1], width, self.dtype, 4, pad=0)
        self.g = matrix(rows, width, self.dtype, 5)

    def forward(self, ranges=None):
        block, rows = self.edges.block, self.edges.num_rows
        top = torch.full((rows, self.heads), -float("inf"), dtype=self.dtype)
        total = torch.zeros(rows, self.heads, dtype=self.dtype)
        out = torch.zeros(rows, self.heads * self.channels, dtype=self.dtype)
        for low, high in ranges or [(0, block.num_columns)]:
            dropout = self.dropout and kernels.EdgeDropout(
                **(vars(self.dropout) | {"source_ids": self.dropout.source_ids[low:high]})
            )
            kernels.gatv2_forward(
                kernels.columns_between(block, low, high),
                self.inputs["zl"][low:high],
                *(self.inputs["zr"], self.inputs["att"], top, total, out),
                slope=SLOPE,
                dropout=dropout,
                edge_matrix=self.inputs.get("edge_matrix"),
            )
        seen = total > 0
        lse = torch.where(seen, top + total.log(), 0)
        return out / torch.where(seen, total, 1).repeat_interleave(self.channels, 1), lse

    def backward(self, result, lse, pieces=None):
        shape = (-1, self.heads, self.channels)
        d = (self.g.reshape(shape) * result.reshape(shape)).sum(2)
        grads = {name: torch.zeros_like(tensor) for name, tensor in self.inputs.items()}
        for rows in pieces or [None]:
            kernels.gatv2_backward(
                self.edges.block,
                *(self.inputs["zl"], self.inputs["zr"], self.inputs["att"], self.g, lse, d),
                *(grads["zl"], grads["zr"], grads["att"]),
                slope=SLOPE,
                dropout=self.dropout,
                edge_matrix=self.inputs.get("edge_matrix"),
                grad_edge_matrix=grads.get("edge_matrix"),
                rows=rows,
            )
        return grads

    def reference(self, mask=None):
        """Result and gradients by autograd in double precision."""
        edges, heads = self.edges, self.heads
        leaf = {name: x.double().clone().requires_grad_() for name, x in self.inputs.items()}
        inner = leaf["zl"][edges.source] + leaf["zr"][edges.target]
        if "edge_matrix" in leaf:
            inner = inner + edges.block.features.double() @ leaf["edge_matrix"]
        inner = torch.nn.functional.leaky_relu(inner, SLOPE).reshape(-1, heads, self.channels)
        weight = (inner * leaf["att"]).sum(2).exp()
        total = torch.zeros(edges.num_rows, heads, dtype=torch.float64)
        total = total.index_add(0, edges.target, weight)
        weight = weight / total[edges.target]
        if mask is not None:
            weight = weight * mask
        z = leaf["zl"].reshape(-1, heads, self.channels)[edges.source]
        result = torch.zeros(edges.num_rows, heads, self.channels, dtype=torch.float64)
        result = result.index_add(0, edges.target, weight[:, :, None] * z).flatten(1)
        grads = torch.autograd.grad(result, list(leaf.values()), self.g.double())
        return result.detach(), dict(zip(leaf, grads, strict=True))


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        limit = tolerance * max(1, float(value.abs().max()))
        assert float((found[name].double() - value).abs().max()) < limit, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), SHAPES)
def test_agrees_with_autograd_at_every_shape(heads, channels, dtype):
    for depth in (0, 3):
        edges = random_edges(11, 8, 60, seed=heads, feature_width=depth, listed_rows=depth == 3)
        problem = Problem(edges, heads, channels, dtype)
        result, lse = problem.forward()
        expected, gradients = problem.reference()
        agree({"result": result}, {"result": expected}, TOLERANCE[dtype])
        agree(problem.backward(result, lse), gradients, 5 * TOLERANCE[dtype])


def test_blocks_pieces_and_threads():
    problem = Problem(
        random_edges(40, 30, 700, feature_width=2, listed_rows=True), 4, 8, torch.float64
    )
    expected, gradients = problem.reference()
    count = problem.edges.block.num_rows
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            result, lse = problem.forward(ranges=[(0, 4), (4, 4), (4, 30)])
            grads = problem.backward(result, lse)
            agree({"result": result}, {"result": expected}, 1e-12)
            agree(grads, gradients, 1e-12)
            for name, grad in problem.backward(result, lse).items():
                assert torch.equal(grad, grads[name]), name
            agree(problem.backward(result, lse, [(0, 5), (5, 5), (5, count)]), gradients, 1e-12)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("depth", [0, 2])
def test_dropout_is_that_of_attention(depth):
    edges = random_edges(30, 25, 300, feature_width=depth)
    ids = torch.randperm(1000)
    dropout = kernels.EdgeDropout(0.4, 3, 2, 1, ids[:25].clone(), ids[100:130].clone())
    problem = Problem(edges, 4, 8, torch.float64, dropout)
    result, lse = problem.forward(ranges=[(0, 9), (9, 25)])
    # With a score of 0 everywhere and z = 1, an edge that is alone in its row gives its mask.
    count = len(edges.source)
    alone = random_edges(count, 25, 0).block
    alone = type(alone)(
        0, 25, None, torch.arange(count), torch.arange(count) + 1, edges.block.columns
    )
    mask = torch.zeros(count, 4, dtype=torch.float64)
    kernels.gat_forward(
        alone,
        torch.ones(25, 4, dtype=torch.float64),
        torch.zeros(25, 4, dtype=torch.float64),
        torch.zeros(count, 4, dtype=torch.float64),
        torch.full((count, 4), -float("inf"), dtype=torch.float64),
        torch.zeros(count, 4, dtype=torch.float64),
        mask,
        slope=SLOPE,
        dropout=kernels.EdgeDropout(
            0.4, 3, 2, 1, dropout.source_ids, dropout.destination_ids[edges.target]
        ),
    )
    expected, gradients = problem.reference(mask)
    agree({"result": result}, {"result": expected}, 1e-12)
    agree(problem.backward(result, lse), gradients, 1e-12)


def test_what_does_not_fit_is_refused():
    edges = random_edges(6, 4, 20)
    zl, zr, att = torch.zeros(4, 6), torch.zeros(6, 6), torch.zeros(2, 3)
    sums = torch.zeros(6, 2), torch.zeros(6, 2), torch.zeros(6, 6)
    for wrong in [
        (zl[:3], zr, att),
        (zl, zr[:5], att),
        (zl, zr, torch.zeros(2, 2)),
        (zl, zr, torch.zeros(3, 2).T),
        (zl, zr, att.double()),
        (zl.double(), zr.double(), att),
    ]:
        with pytest.raises(InputError):
            kernels.gatv2_forward(edges.block, *wrong, *sums, slope=SLOPE)
    with pytest.raises(InputError):
        kernels.gatv2_forward(
            edges.block, zl, zr, att, *sums, slope=SLOPE, edge_matrix=torch.zeros(2, 6)
        )
