"""How operations on a graph run: the ring, the mode, and the key of random numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.kept import Kept


@dataclass(eq=False)
class Execution:
    """How operations run on a graph and on graphs pruned from it; their field `execution`.

    Attributes:
        ring: buffers and counters of the exchanges.
        mode: `sar` (remote data is freed and rebuilt), `sa` (kept for backward), or `oneshot` (one
            exchange with buffers as large as it needs).
        seed, epoch: key of the dropout masks; call `set_epoch` at the start of each epoch.
        fewest_rows: send sums between parts as whichever rows are fewest, see `sar.vertex_cover`.
        narrow_first: multiply by weights before a sum if that makes its rows narrower.
        cache_first: compute sums of the constant input features once and keep them.
        newest: an array that the newest layer would otherwise compute again in its backward. The
            next exchange of any layer drops it, and so does any use of memory between layers: a
            layer whose backward follows at once finds its array, and no other layer pays for it.
            Code that starts an exchange sets it to None.
        wide: the same for the layer before the newest, see `make_way`.
        together: number of hidden layers of a built-in model that are recomputed together in
            backward; 0: none, see `sar.recompute`.
        handed: rows that the newest layer left to the next one to make, see `sar.handed`.
        forgets: whether tensors saved for backward now are discarded and computed again, so that
            saving fewer of them would gain nothing.
        kept: the context that keeps tensors in bfloat16, during a pass that does so.
        arrays: memory of layers' large arrays, which one layer leaves to the next.
    """

    ring: Ring
    mode: str = "sar"
    seed: int = 0
    fewest_rows: bool = True
    narrow_first: bool = True
    cache_first: bool = True
    together: int = 0
    newest: Tensor | None = field(default=None, init=False, repr=False)
    wide: Tensor | None = field(default=None, init=False, repr=False)
    handed: Any = field(default=None, init=False, repr=False)
    forgets: bool = field(default=False, init=False, repr=False)
    kept: Kept | None = field(default=None, init=False, repr=False)
    arrays: Arrays = field(default_factory=Arrays, init=False, repr=False)
    _epoch: int = field(default=0, init=False)
    _warns: bool = field(default=True, init=False, repr=False)
    _drawn: set[int] = field(default_factory=set, init=False, repr=False)
    _again: bool = field(default=False, init=False, repr=False)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def at_once(self) -> bool:
        """Whether messages are as long as MPI allows, and all are posted before any is read."""
        return self.mode == "oneshot"

    def set_epoch(self, epoch: int) -> None:
        """See `PartitionedGraph.set_epoch`."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise InputError("an epoch must be an integer of at least 0", value=epoch)
        self._epoch, self._warns = epoch, False
        self.ring.begun = 0

    def mask_key(self, layer: int) -> tuple[int, int, int]:
        """Return seed, epoch and layer of a dropout mask; warn once if masks never change."""
        if self._warns and layer in self._drawn and not self._again:
            self._warns = False
            warnings.warn(
                "dropout draws the same mask again, since the epoch was never set: call "
                "graph.set_epoch(epoch) at the start of each epoch",
                stacklevel=4,
            )
        self._drawn.add(layer)
        return self.seed, self._epoch, layer

    def make_way(self, columns: int) -> None:
        """Drop the newest array before a layer makes one with `columns` columns.

        If it is at least twice as wide, it is kept beside the new one: the backward of the narrow
        layer needs less memory than that of the wide layer, which then has the array that it would
        otherwise compute again. An array that was kept before is dropped.
        """
        newest, self.newest, self.wide = self.newest, None, None
        if newest is not None and is_wide(newest.shape[1], columns) and self.kept is None:
            self.wide = newest

    def keep_exact(self, *tensors: Tensor | None) -> None:
        """Mark tensors that are saved for backward and must be kept to the last bit."""
        if self.kept is not None:
            self.kept.exact(tensors)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Set `forgets` within the context: tensors saved for backward are discarded."""
        before, self.forgets = self.forgets, True
        try:
            yield
        finally:
            self.forgets = before

    @contextmanager
    def as_in(self, epoch: int) -> Iterator[None]:
        """Recompute what an epoch computed, within the context: with its masks, without `kept`."""
        before = self._epoch, self._again, self.kept
        self._epoch, self._again, self.kept = epoch, True, None
        try:
            with self.forgetting():
                yield
        finally:
            self._epoch, self._again, self.kept = before


def is_wide(columns: int, after: int) -> bool:
    """Return whether a layer's product is kept for its backward, see `make_way`."""
    return columns >= 2 * after
