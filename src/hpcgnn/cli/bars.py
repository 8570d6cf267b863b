"""Progress bars on a terminal, by rich: progress, rate, remaining time and peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from hpcgnn.cli.amounts import amounts, duration, peak
from hpcgnn.display import Display, Stage
from hpcgnn.errors import printable, say

_WORTH_A_LINE = 2.0  # seconds of a stage from which its end is reported


class Bars(Display):
    """A bar for each running stage, on standard error; printed lines appear above the bars."""

    def __init__(self) -> None:
        self._progress = _Polling(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            _Amounts(table_column=Column(no_wrap=True)),
            console=_Console(stderr=True, highlight=False),
            refresh_per_second=4,
            # Only if both are one terminal: output to a file stays there.
            redirect_stdout=sys.stdout.isatty(),
            transient=True,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, *lines: object) -> None:
        say(*lines)

    def note(self, *lines: object) -> None:
        say(*lines)

    @contextmanager
    def stage(
        self,
        text: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: Callable[[], float] | None = None,
        spoken: bool = False,
    ) -> Iterator[Stage]:
        began, text = time.monotonic(), printable(text)
        number = self._progress.add_task(text, total=total, unit=unit, done=done)
        try:
            yield _Bar(self._progress, number)
        finally:
            self._progress.remove_task(number)
            self._progress.refresh()  # else the bar shows again below the next line
        seconds = time.monotonic() - began
        if seconds > _WORTH_A_LINE and not spoken:
            self._progress.console.print(
                f"{text}: {duration(seconds)}, peak {peak()}", markup=False, style="dim"
            )


class _Bar(Stage):
    def __init__(self, progress: Progress, number: TaskID) -> None:
        self._progress, self._number = progress, number

    def advance(self, amount: float = 1.0) -> None:
        self._progress.advance(self._number, amount)


class _Polling(Progress):
    """Progress that polls the stages that don't report their own."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            if task.fields["done"] is not None:
                self.update(task.id, completed=task.fields["done"]())
        yield from super().get_renderables()


class _Amounts(ProgressColumn):
    """A column of amount, rate, remaining time and peak memory."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        if task.completed and elapsed:
            words = amounts(task.completed, task.total, task.fields["unit"], elapsed, short=True)
        else:
            words = duration(elapsed)
        return Text(f"{words}, peak {peak()}")


class _Console(Console):
    """A console that doesn't hide the cursor, since a killed program couldn't restore it."""

    def show_cursor(self, show: bool = True) -> bool:
        return False
