"""Data derived from a block is built once and belongs to that block."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn.kernels import Block


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
