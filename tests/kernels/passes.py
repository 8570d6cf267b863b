"""Fused passes of the GPU kernels against the same steps one by one, emulated and on GPUs."""

from __future__ import annotations

import torch

from hpcgnn import kernels
from hpcgnn.kernels.block import Block
from tests.kernels.blocks import matrix, random_edges


def loops_come_with_the_first_edges(
    heads: int, channels: int, p: float, device: torch.device
) -> None:
    """Check self-loops in the first pass against a separate block of them, also for some rows."""
    count, width = 40, heads * channels
    block = random_edges(count, count, 300).block.to(device)
    block.end[7] = block.begin[7]
    assert int((block.end - block.begin).max()) > 5
    z, g = (matrix(count, width, torch.float32, seed, pad=0).to(device) for seed in (1, 5))
    s, t, d = (matrix(count, heads, torch.float32, seed).to(device) for seed in (2, 3, 4))
    ids = torch.arange(count, device=device) * 7
    scoring = kernels.Scoring(0.2, kernels.EdgeDropout(p, 1, 2, 3, ids, ids))
    sources = kernels.Sources(z, s)
    pointer = torch.arange(count + 1, device=device)
    self_loops = Block(0, count, None, pointer[:-1], pointer[1:], pointer[:-1].to(torch.int32))
    parts = [kernels.picked(block, rows) for rows in torch.randperm(count).to(device).split(15)]
    parts = [kernels.picked(block, part.rows.long().sort().values) for part in parts]

    apart = kernels.RunningSoftmax.zeros(count, heads, width, dtype=z.dtype, device=z.device)
    for part in (self_loops, block):
        kernels.gat_forward(part, sources, t, apart, scoring)
    unset = [torch.full((count, n), torch.nan, device=device) for n in (heads, heads, width)]
    together = kernels.RunningSoftmax(*unset, self_loops=True)
    for part in parts:
        kernels.gat_forward(part, sources, t, together, scoring)
    for name in ("row_max", "row_sum", "out"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name))

    lse = apart.row_max + apart.row_sum.log()
    destinations = kernels.Destinations(g, t, lse, d)

    def zeros(**settings):
        scalars = torch.zeros_like(s), torch.zeros_like(s, dtype=torch.float64)
        rows = torch.full_like(z, torch.nan if settings else 0.0)
        return kernels.GATGradients(rows, *scalars, **settings)

    one, other = zeros(), zeros(self_loops=True, adds=False)
    for part in (self_loops, block):
        kernels.gat_backward(part, destinations, sources, one, scoring)
    for part in parts:
        kernels.gat_backward(part, destinations, sources, other, scoring)
    for name in "zst":
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-5, atol=1e-5)


def ends_in_one_pass(heads: int, channels: int, p: float, device: torch.device) -> None:
    """Check division by the softmax, bias, ReLU, dropout, and backward with <g, o>, in one pass."""
    count, width = 9, heads * channels
    out, grad = (matrix(count, width, torch.float32, seed, pad=0).to(device) for seed in (1, 2))
    row_sum, bias = matrix(count, heads, torch.float32, 3).abs() + 1, torch.randn(width)
    row_sum, bias = row_sum.to(device), bias.to(device)
    ids = torch.arange(count, device=device) * 10**12
    given = {"p": p, "seed": 1, "epoch": 2, "layer": 3, "relu": True}
    plain = out.view(count, heads, channels) / row_sum[:, :, None] + bias.view(heads, channels)
    expected = torch.empty_like(out)
    kernels.dropout_nodes(plain.view(count, width), expected, ids, **given)
    kernels.dropout_nodes(out, out, ids, **given, sums=kernels.Sums(row_sum, bias))
    assert torch.equal(out, expected) and bool((out == 0).any())

    del given["relu"]
    g, dots, both = (torch.empty_like(tensor) for tensor in (out, row_sum, row_sum))
    kernels.dropout_nodes_backward(grad, g, ids, **given, y_NF=out)
    kernels.head_dots(g, out, dots, minus_K=bias)
    kernels.head_dots(grad, out, both, minus_K=bias, grad_NK=grad, p=p)
    assert torch.equal(grad, g) and torch.equal(both, dots)
