"""The display of a command's progress: bars on a terminal, else lines with the time, or JSON.

Only rank 0 shows anything. Bars are shown if its standard error is a terminal. Under `mpiexec` it
is a pipe even in a terminal, so lines are written; `srun --pty` gives rank 0 the terminal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from hpcgnn.cli.amounts import amounts, peak, peak_bytes
from hpcgnn.comm.launcher import launched
from hpcgnn.display import SILENT, Display, Stage
from hpcgnn.errors import counted, printable, say
from hpcgnn.system import clock, now
from hpcgnn.version import __version__

VERBS = ("generate", "convert", "partition", "train", "predict")
_EVERY = 10.0  # seconds between two lines of a stage


def add_options(parser: argparse.ArgumentParser) -> None:
    shown = parser.add_mutually_exclusive_group()
    for flags, show, text in (
        (
            ("-v", "--verbose"),
            "all",
            "show every stage, and waiting, bytes and memory of epochs",
        ),
        (("-q", "--quiet"), "nothing", "show only the results"),
        (
            ("--log-json",),
            "json",
            "write a JSON object per line; for epochs the records of metrics.jsonl",
        ),
    ):
        shown.add_argument(*flags, dest="show", action="store_const", const=show, help=text)
    parser.set_defaults(show="lines")


def begin(argv: Sequence[str]) -> None:
    """Print what begins, before slow imports such as those of the verb argv[0]."""
    rank, size = launched()
    asked = _asked(argv[1:])
    if rank or asked is None or asked.help:
        return
    on = f" on {counted(size, 'rank')}" if size > 1 else ""
    text = printable(f"hpcgnn {__version__}: {' '.join([argv[0], *_subject(argv[1:])])}{on}")
    if asked.show == "json":
        _print_json({"note": text})
    elif asked.show != "nothing":
        print(f"{clock()} {text}" if not _on_terminal() else text, flush=True)


def _asked(options: Sequence[str]) -> argparse.Namespace | None:
    """Return how to show the work and whether help is requested; None for invalid options."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", "--help-all", action="store_true", dest="help")
    add_options(parser)
    try:
        return parser.parse_known_args(list(options))[0]
    except argparse.ArgumentError:
        return None


def _subject(options: Sequence[str]) -> list[str]:
    """Return the words before the first option; without any, that option and its value."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), options))
    return words or list(options[:2])


def display_of(args: argparse.Namespace, rank: int = 0) -> AbstractContextManager[Display]:
    """Return the display of a verb with these options."""
    show = getattr(args, "show", "lines")
    if rank:
        return nullcontext(SILENT)
    if show == "nothing":
        return nullcontext(Quiet())
    if show == "json":
        return nullcontext(Json())
    return _bars() if _on_terminal() else nullcontext(Lines(every_stage=show == "all"))


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps({"time": now(), **values}), flush=True)


class Quiet(Display):
    """A display of results only, without progress."""

    def say(self, *lines: object) -> None:
        say(*lines)


class _Timed(Stage):
    """A stage that reports its progress every few seconds."""

    def __init__(
        self, tell: Callable[[_Timed, str], None], text: str, total: float | None, unit: str
    ) -> None:
        self.text, self.total, self.unit, self.value = text, total, unit, 0.0
        self.began = self._spoke = time.monotonic()
        self._tell = tell

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def advance(self, amount: float = 1.0) -> None:
        self.value += amount
        moment = time.monotonic()
        if moment - self._spoke > _EVERY:
            self._spoke = moment
            self._tell(self, "under way")


class Lines(Quiet):
    """Lines with the time of day: every ten seconds during a long stage, and at its end.

    Args:
        every_stage: report the end of short stages too.
    """

    def __init__(self, *, every_stage: bool = False) -> None:
        self._every_stage = every_stage

    def note(self, *lines: object) -> None:
        self.say(*lines)

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
        if spoken:
            yield Stage()
            return
        stage = _Timed(self._tell, text, total, unit)
        if total is None or done is not None:  # it reports nothing before its end
            self._tell(stage, "begun")
        yield stage
        if self._every_stage or stage.seconds > _EVERY:
            self._tell(stage, "done")

    def _tell(self, stage: _Timed, how: str) -> None:
        if how == "begun":
            print(f"{clock()} {printable(stage.text)} ...", flush=True)
            return
        words = {"done": f"done in {stage.seconds:.1f} s"}.get(how, "")
        if stage.value and stage.seconds > 0:
            words += (", " if words else "") + amounts(
                stage.value, stage.total, stage.unit, stage.seconds
            )
        print(f"{clock()} {printable(stage.text)}: {words}, peak {peak()}", flush=True)


class Json(Lines):
    """The lines of `Lines` as JSON objects."""

    def say(self, *lines: object) -> None:
        for line in lines:
            _print_json({"note": printable(line)})

    def _tell(self, stage: _Timed, how: str) -> None:
        values: dict[str, Any] = {"stage": stage.text, "state": how}
        if how != "begun":
            values["seconds"] = round(stage.seconds, 3)
        if stage.value:
            values |= {"done": stage.value, "total": stage.total, "unit": stage.unit}
        _print_json(values | {"peak_memory_bytes": peak_bytes()})


@contextmanager
def _bars() -> Iterator[Display]:
    from hpcgnn.cli.bars import Bars

    with Bars() as bars:
        yield bars
