"""One call of each kernel on a small graph, to compare a device with the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.chunks import columns_between, transpose
from hpcgnn.kernels.dropout import dropout_nodes, dropout_nodes_backward, new_passed
from hpcgnn.kernels.gat import gat_backward, gat_forward, gatv2_backward, gatv2_forward
from hpcgnn.kernels.masks import EdgeDropout
from hpcgnn.kernels.sums import (
    add_rows,
    head_dots,
    head_scores,
    pack_parts,
    spmm,
    spmm_max,
    spmm_max_backward,
)

_ROWS, _HEADS, _CHANNELS, _HUB = 40, 2, 32, 700  # a hub is cut into chunks
_WIDTH = _HEADS * _CHANNELS
_TOLERANCE = 1e-4


def differences(device: torch.device) -> dict[str, float]:
    """Return the errors, by kernel, of results on `device` that differ too much from the CPU's.

    They are relative to the largest value of a result; inf where a value is not finite.
    """
    found, expected = results(device), results(torch.device("cpu"))
    wrong: dict[str, float] = {}
    for name, values in expected.items():
        for value, other in zip(values, found[name], strict=True):
            value, other = value.double(), other.cpu().double()
            error = float((value - other).abs().max() / value.abs().max().clamp(min=1e-30))
            if not error <= _TOLERANCE:
                wrong[name] = max(wrong.get(name, 0.0), error if error == error else torch.inf)
    return wrong


def results(device: torch.device) -> dict[str, list[Tensor]]:
    """Return the results of each kernel on `device`, by name."""
    draw = torch.Generator().manual_seed(0)

    def random(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, generator=draw).to(device)

    def zeros(rows: int, width: int) -> Tensor:
        return torch.zeros(rows, width, device=device)

    block = _block(draw).to(device)
    reverse = transpose(block, _ROWS)
    x, g = random(_ROWS, _WIDTH), random(_ROWS, _WIDTH)
    found: dict[str, list[Tensor]] = {}

    total = zeros(_ROWS, _WIDTH)
    spmm(block, x, total)
    spmm(columns_between(block, 5, 20), x[5:20], total)
    best, ties = torch.full_like(x, -torch.inf), torch.zeros_like(x, dtype=torch.int32)
    spmm_max(block, x, best, ties)
    grad = zeros(_ROWS, _WIDTH)
    spmm_max_backward(reverse, best, g, x, grad)
    best.masked_fill_(ties == 0, 0)
    found |= {"sums": [total], "maxima": [best, ties, grad]}

    rows = torch.arange(0, _ROWS, 3, dtype=torch.int32, device=device)
    s, t = random(_ROWS, _HEADS), random(_ROWS, _HEADS)
    message, scalars = zeros(len(rows), _WIDTH), zeros(len(rows), 2 * _HEADS)
    pack_parts([(x, message), (s, scalars[:, :_HEADS]), (t, scalars[:, _HEADS:])], rows)
    added, dots = g.clone(), zeros(_ROWS, _HEADS)
    add_rows(message, rows, added)
    head_dots(x, g, dots)
    scores = zeros(_ROWS, 2 * _HEADS)
    head_scores(x, random(_HEADS, _CHANNELS), random(_HEADS, _CHANNELS), scores)
    found |= {"rows": [message, scalars, added], "head products": [dots, scores]}

    ids = torch.arange(_ROWS, device=device) * 10**10
    dropped, back, key = torch.empty_like(x), torch.empty_like(x), {"p": 0.4, "seed": 1, "epoch": 2}
    passed, by_bits = new_passed(x, dropped), torch.empty_like(back)
    dropout_nodes(x, dropped, ids, layer=3, relu=True, passed=passed, **key)  # type: ignore[arg-type]
    dropout_nodes_backward(g, back, ids, layer=3, y_NF=dropped, **key)  # type: ignore[arg-type]
    dropout_nodes_backward(g, by_bits, ids, layer=3, passed=passed, **key)  # type: ignore[arg-type]
    found["dropout"] = [dropped, back, by_bits]

    dropout = EdgeDropout(0.4, 1, 2, 3, ids, ids)
    for name, given in (("", None), (" with dropout", dropout)):
        for more, width in (("", 0), (" and edge features", 2)):
            first, second = random(_HEADS, 2), random(2, _WIDTH)
            gat = Scoring(0.2, given, first if width else None)
            gatv2 = Scoring(0.2, given, second if width else None)
            sources, projections = Sources(x, s), Projections(x, g, random(_HEADS, _CHANNELS))
            found[f"gat{name}{more}"] = _gat(block, reverse, sources, t, g, gat)
            found[f"gatv2{name}{more}"] = _gatv2(block, projections, g, gatv2)
    return found


def _block(draw: torch.Generator) -> Block:
    """Return a block of few edges into each row but one, with weights and features."""
    counts = torch.randint(0, 9, (_ROWS,), generator=draw)
    counts[3] = _HUB
    end = counts.cumsum(0)
    row = torch.repeat_interleave(torch.arange(_ROWS), counts)
    column = torch.randint(_ROWS, (int(end[-1]),), generator=draw)
    order = torch.argsort(row * _ROWS + column)
    return Block(
        peer=0,
        num_columns=_ROWS,
        rows=None,
        begin=end - counts,
        end=end,
        columns=column[order].int(),
        weight=torch.rand(len(column), generator=draw),
        features=torch.randn(len(column), 2, generator=draw),
    )


def _lse(softmax: RunningSoftmax) -> Tensor:
    none = softmax.row_sum == 0
    lse = softmax.row_max.masked_fill(none, 0) + softmax.row_sum.masked_fill(none, 1).log()
    softmax.out.unflatten(1, (_HEADS, -1)).div_(softmax.row_sum.masked_fill(none, 1)[..., None])
    return lse


def _softmax(x: Tensor) -> RunningSoftmax:
    return RunningSoftmax.zeros(_ROWS, _HEADS, _WIDTH, dtype=x.dtype, device=x.device)


def _gat(
    block: Block, reverse: Block, sources: Sources, t: Tensor, g: Tensor, scoring: Scoring
) -> list[Tensor]:
    softmax = _softmax(g)
    gat_forward(block, sources, t, softmax, scoring)
    lse, d = _lse(softmax), torch.zeros_like(t)
    head_dots(g, softmax.out, d)
    weight = scoring.edge_weight
    z, s, t_grad = map(torch.zeros_like, (sources.z, sources.s, t))
    grads = GATGradients(z, s, t_grad, None if weight is None else torch.zeros_like(weight))
    gat_backward(reverse, Destinations(g, t, lse, d), sources, grads, scoring)
    made = (softmax.out, lse, grads.z, grads.s, grads.t, grads.edge_weight)
    return [value for value in made if value is not None]


def _gatv2(block: Block, inputs: Projections, g: Tensor, scoring: Scoring) -> list[Tensor]:
    softmax = _softmax(g)
    gatv2_forward(block, inputs, softmax, scoring)
    lse, d = _lse(softmax), torch.zeros_like(softmax.row_sum)
    head_dots(g, softmax.out, d)
    weight = scoring.edge_weight
    zl, zr, att = map(torch.zeros_like, (inputs.zl, inputs.zr, inputs.att))
    grads = GATv2Gradients(zl, zr, att, None if weight is None else torch.zeros_like(weight))
    gatv2_backward(block, inputs, ResultGradient(g, lse, d), grads, scoring)
    made = (softmax.out, lse, grads.zl, grads.zr, grads.att, grads.edge_weight)
    return [value for value in made if value is not None]
