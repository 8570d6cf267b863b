"""How operations on a graph run: over which ring, in which mode, with which random numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.kept import Kept


@dataclass(eq=False)
class Execution:
    """Held by a graph, and by the graphs pruned from it, as their field `execution`.

    Attributes:
        ring: buffers and counters of the exchanges.
        mode: `sar` (remote data is freed and rebuilt), `sa` (kept for backward), or `oneshot` (one
            exchange with buffers as large as it needs).
        seed, epoch: key of the dropout masks; `set_epoch` at the start of each epoch.
        fewest_rows: sums between parts travel as whichever rows are fewest, see
            `sar.vertex_cover`.
        narrow_first: weights multiply before a sum where that makes its rows narrower.
        cache_first: sums of the constant input features are computed once and kept.
        newest: an array that the newest layer would compute again for its backward. The next
            exchange drops it, whichever layer's it is, and so does what takes memory between
            layers: a layer whose backward comes at once finds its array, no other one pays for it.
            Whoever starts an exchange sets it to None.
        wide: likewise of the layer before the newest, see `make_way`.
        together: so many hidden layers of a built-in model are computed again together in
            backward; 0: none is, see `sar.recompute`.
        forgets: whether what is saved for backward now is forgotten and computed again, so that
            sparing some of it would spare nothing.
        kept: what may be kept in bfloat16, while a pass runs that does so.
        arrays: memory of layers' large arrays, which goes from one to the next.
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
        """Whether messages are as long as MPI takes, and all of them posted before any is read."""
        return self.mode == "oneshot"

    def set_epoch(self, epoch: int) -> None:
        """See `PartitionedGraph.set_epoch`."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise InputError("an epoch must be an integer of at least 0", value=epoch)
        self._epoch, self._warns = epoch, False
        self.ring.begun = 0

    def mask_key(self, layer: int) -> tuple[int, int, int]:
        """Seed, epoch and layer of a dropout mask; warns once of masks that never change."""
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
        """Let the newest array go before a layer makes one of so many columns.

        One that is at least twice as wide stays beside it: the narrow layer's backward takes less
        than that of the wide one, which then has the array that it would take again anyway. What
        stayed before goes.
        """
        newest, self.newest, self.wide = self.newest, None, None
        if newest is not None and is_wide(newest.shape[1], columns) and self.kept is None:
            self.wide = newest

    def keep_exact(self, *tensors: Tensor | None) -> None:
        """Say that these are saved for backward, which needs every bit of them."""
        if self.kept is not None:
            self.kept.exact(tensors)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Within, what is saved for backward is forgotten."""
        before, self.forgets = self.forgets, True
        try:
            yield
        finally:
            self.forgets = before

    @contextmanager
    def as_in(self, epoch: int) -> Iterator[None]:
        """Within, what an epoch computed is computed again: with its masks, in its words."""
        before = self._epoch, self._again, self.kept
        self._epoch, self._again, self.kept = epoch, True, None
        try:
            with self.forgetting():
                yield
        finally:
            self._epoch, self._again, self.kept = before


def is_wide(columns: int, after: int) -> bool:
    """Whether a layer's product stays for its backward beside the next layer's, see `make_way`."""
    return columns >= 2 * after
