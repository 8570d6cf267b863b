"""Progress reports of long work; `cli/displays.py` shows them to the user."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Stage:
    """A piece of work in progress; this base class reports nothing."""

    def advance(self, amount: float = 1.0) -> None:
        """Report that another `amount` of the total is done."""


class Display:
    """A display of the progress of long work; this base class shows nothing and costs nothing.

    Only the display of rank 0 shows anything.
    """

    def stage(
        self,
        text: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: Callable[[], float] | None = None,
        spoken: bool = False,
    ) -> AbstractContextManager[Stage]:
        """Return a context for a piece of work.

        Args:
            text: the work, as in `write the edges`.
            total: its total, in `unit`; None if unknown.
            done: returns the amount done so far, if the work itself doesn't call `advance`.
            spoken: the work prints a line for each step itself.
        """
        return nullcontext(Stage())

    def say(self, *lines: object) -> None:
        """Print lines of results, each made printable."""

    def note(self, *lines: object) -> None:
        """Print lines about the progress, which a quiet command leaves out."""


SILENT = Display()
