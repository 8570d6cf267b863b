"""Packing rows of nodes into a message."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import kernels


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [1, 7, 64, 2100])
@pytest.mark.parametrize(
    ("dtype", "wire"),
    [(torch.float32, torch.float32), (torch.float64,) * 2, (torch.float32, torch.bfloat16)],
)
def test_packed_rows_are_those_asked_for(threads, width, dtype, wire):
    """From a wider matrix into a wider message, whose other columns are unchanged."""
    x = torch.randn(40, width + 3, dtype=dtype)[:, 2 : width + 2]
    rows = torch.tensor([39, 0, 7, 7, 12, 3, 38, 1, 2, 5, 21], dtype=torch.int32)
    message = torch.full((len(rows), width + 2), 7.0, dtype=wire)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels.pack_rows(x, rows, message[:, 1:-1])
        kernels.pack_rows(x, rows[:0], message[:0, 1:-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(message[:, 1:-1], x[rows].to(wire))
    assert torch.all(message[:, [0, -1]] == 7)
