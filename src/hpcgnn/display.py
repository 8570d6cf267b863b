"""What long work tells of how far it is; what shows it to a person is in `cli/displays.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Stage:
    """A piece of work under way; this one tells nobody."""

    def advance(self, amount: float = 1.0) -> None:
        """So much of the total more is done."""


class Display:
    """Handed down to work that may take long. This one shows nothing, and costs nothing.

    Only the display of rank 0 shows something.
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
        """For the block, which is a piece of work.

        Args:
            text: what is done, as in `write the edges`.
            total: how much there is, in `unit`; None: nobody knows.
            done: tells how much of it is done, where the work itself does not by `advance`.
            spoken: every step has a line of its own anyway.
        """
        return nullcontext(Stage())

    def say(self, *lines: object) -> None:
        """Lines that say what came out, each made printable."""

    def note(self, *lines: object) -> None:
        """Lines that say what is going on, which a quiet command leaves out."""


SILENT = Display()
