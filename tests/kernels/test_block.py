"""Data derived from a block is built once and belongs to that block."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hpcgnn.kernels import Block, transposed
from hpcgnn.kernels.chunks import RowLists


@dataclass(frozen=True)
class Degrees:
    factor: int = 1

    def build(self, given: Block) -> Tensor:
        return (given.end - given.begin).double() * self.factor


def small_block() -> Block:
    return Block(
        peer=0,
        num_columns=3,
        rows=None,
        begin=torch.tensor([0, 2]),
        end=torch.tensor([2, 3]),
        columns=torch.tensor([0, 2, 1], dtype=torch.int32),
    )


def test_derived_once_for_each_key() -> None:
    block = small_block()
    assert block.derived(Degrees()) is block.derived(Degrees(1))
    assert block.derived(Degrees(2)).tolist() == [4, 2]
    copy = replace(block, end=torch.tensor([2, 2]))
    assert copy.derived(Degrees()).tolist() == [2, 0]


def test_derived_in_inference_serves_training() -> None:
    block = small_block()
    with torch.inference_mode():
        degrees = block.derived(Degrees())
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (weight * degrees).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [2, 1]


def test_derived_goes_with_its_block() -> None:
    block = small_block()
    degrees = weakref.ref(block.derived(Degrees()))
    del block
    gc.collect()
    assert degrees() is None


def test_a_transpose_with_the_same_edges_takes_no_memory() -> None:
    block = small_block()
    turned = transposed(block, 2, with_features=False)
    assert turned.begin.tolist() == [0, 1, 2] and turned.columns.tolist() == [0, 1, 0]
    symmetric = replace(block, num_columns=2, columns=torch.tensor([0, 1, 0], dtype=torch.int32))
    symmetric = replace(symmetric, features=torch.tensor([[1.0], [2.0], [3.0]]))
    turned = transposed(symmetric, 2, with_features=True)
    assert turned.features is not None and turned.features.flatten().tolist() == [1, 3, 2]
    for name in ("begin", "end", "columns"):
        assert getattr(turned, name).data_ptr() == getattr(symmetric, name).data_ptr()


@pytest.mark.parametrize(
    ("step", "dtype"), [(255, torch.uint8), (256, torch.int16), (1 << 15, torch.int32)]
)
def test_lists_of_rows_take_as_few_bytes_as_their_steps_allow(
    step: int, dtype: torch.dtype
) -> None:
    rows = torch.tensor([70000, 70000 + step, 3, 4], dtype=torch.int32)
    lists = RowLists.of(rows, torch.tensor([0, 0, 2, 4, 4]))
    assert lists.steps.dtype == dtype
    found = [lists[number] for number in range(4)]
    assert [part.tolist() for part in found] == [[], rows[:2].tolist(), [3, 4], []]
    assert all(part.dtype == torch.int32 for part in found)
