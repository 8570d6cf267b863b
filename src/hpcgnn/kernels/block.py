"""The operand of the kernels: edges compressed by destination row, and values derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Given_contra = TypeVar("Given_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Derivation(Protocol[Given_contra, Result_co]):
    """A recipe for a value that follows from an object; equal recipes give the same value."""

    def build(self, given: Given_contra, /) -> Result_co: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Derived:
    """An immutable object that keeps the values derived from it.

    A copy made with other fields (`dataclasses.replace`) starts without derived values.
    """

    _kept: dict[Derivation[Any, Any], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def derived(self, what: Derivation[Self, T]) -> T:
        """Return `what.build(self)`, built once; valid in inference mode and in training alike."""
        if what not in self._kept:
            with torch.inference_mode(False):
                self._kept[what] = what.build(self)
        value: T = self._kept[what]
        return value


@dataclass(frozen=True)
class Block(Derived):
    """Edges from one part into this rank's nodes, compressed by destination row.

    Row k of the block is local node `rows[k]` (or k itself where `rows` is None) and owns the edges
    `begin[k] .. end[k]`; edge e reads row `columns[e] - column_offset` of the other operand.
    """

    peer: int
    num_columns: int
    rows: Tensor | None  # int32 [R], ascending
    begin: Tensor  # int64 [R]
    end: Tensor  # int64 [R]
    columns: Tensor  # int32 [E], ascending in each row
    column_offset: int = 0
    weight: Tensor | None = None  # float32 [E]
    relation: Tensor | None = None  # int32 [E]
    features: Tensor | None = None  # float32 [E, D]
    mean_degree: float | None = None  # of the block that the rows were picked from: see `picked`

    @property
    def num_rows(self) -> int:
        return self.begin.shape[0]

    @property
    def num_edges(self) -> int:
        return int((self.end - self.begin).sum())

    def to(self, device: torch.device | str) -> Block:
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def device(self) -> torch.device:
        return self.begin.device


@dataclass(frozen=True)
class RowScale:
    """The scaling of a row's sum before it is written: `scale[i] * (sum + loop[i] * x[i])`.

    Attributes:
        scale_N, loop_N: `[local rows]`, in the accumulation dtype; `loop` counts as 0 if None.
    """

    scale_N: Tensor
    loop_N: Tensor | None = None
