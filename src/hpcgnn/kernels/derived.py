"""What follows from an object alone: computed at first use, kept as long as the object lives.

A derivation is a frozen dataclass whose fields are its parameters:

    @dataclass(frozen=True)
    class Columns:
        low: int
        high: int

        def build(self, given: Block) -> Block: ...

    part = block.derived(Columns(0, 10))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import torch

T = TypeVar("T")
Given_contra = TypeVar("Given_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Derivation(Protocol[Given_contra, Result_co]):
    """How something follows from an object; equal derivations give the same thing."""

    def build(self, given: Given_contra, /) -> Result_co: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Derived:
    """An object that does not change, with what was derived from it.

    A copy made with other fields (`dataclasses.replace`) starts with nothing derived.
    """

    _kept: dict[Derivation[Any, Any], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def derived(self, what: Derivation[Self, T]) -> T:
        """`what.build(self)`, the same object each time; it serves inference and training alike."""
        if what not in self._kept:
            with torch.inference_mode(False):
                self._kept[what] = what.build(self)
        value: T = self._kept[what]
        return value
