"""The outputs of a measurement: lines on the terminal, a JSON file, a plot."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hpcgnn import system
from hpcgnn.errors import InputError, OutputError, say, shortened
from hpcgnn.storage.write import atomic
from hpcgnn.system import now
from hpcgnn.train.journal import check_regular
from hpcgnn.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TERMINAL = Path("-")  # in place of the table
_DRAWINGS = (".svg", ".png", ".pdf")
_SIGN = "hpcgnn bench"  # marks a plot as ours, so that it may be replaced
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": _SIGN},
    "png": {"Software": _SIGN},
    "pdf": {"CreationDate": None, "Creator": _SIGN},
}
_LARGEST = 64 << 20  # bytes read of a file to recognise it


class Measured(Protocol):
    """The result of a measurement."""

    def lines(self) -> list[str]: ...

    def as_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Outputs:
    """The requested files; `force` replaces existing ones. JSON may go to the terminal, as `-`."""

    json: Path | None
    plot: Path | None
    force: bool

    def check(self) -> None:
        """Check the outputs, before anything is measured.

        Raises:
            InputError: a file is there already, or can't be drawn.
            OutputError: no file can be made there.
        """
        if self.json is not None and self.json == self.plot:
            raise InputError("is named for two outputs: give each its own file", file=self.json)
        for path in (self.json, self.plot):
            if path is None or path == _TERMINAL:
                continue
            if path.is_symlink():
                raise InputError("is a link: choose another name", file=path)
            if check_regular(path):
                self._check_former(path)
            with atomic.claim(path):  # hours are not for nothing
                pass
        if self.plot is not None:
            if self.plot.suffix not in _DRAWINGS:
                raise InputError(f"must end in {', '.join(_DRAWINGS)}", file=self.plot)
            import_matplotlib()

    def _check_former(self, path: Path) -> None:
        if not self.force:
            raise InputError("exists already: choose another name, or use --force", file=path)
        if not (_is_measured(path) if path == self.json else _is_drawn(path)):
            raise InputError(
                "exists and was not written by hpcgnn bench, so --force doesn't replace it: "
                "choose another name, or remove it",
                file=path,
            )

    def write(self, found: Measured, draw: Callable[[dict[str, Any]], Figure]) -> None:
        """Write the requested files and print the result.

        Args:
            draw: makes the figure from the content of the JSON file.

        Raises:
            OutputError: a file can't be written.
        """
        content = {**found.as_json(), "machine": machine()}
        text = json.dumps(content, indent=1) + "\n"
        if self.json is not None and self.json != _TERMINAL:
            _write(self.json, lambda path: path.write_text(text, encoding="utf-8"))
        if self.plot is not None:
            save(draw(content), self.plot)
        if self.json == _TERMINAL:  # last, since the terminal may be a full disk
            print(text, end="", flush=True)
        else:
            say(*found.lines())


def save(figure: Figure, path: Path) -> None:
    """Save the figure in the format of the path's suffix, with reproducible bytes.

    Raises:
        OutputError: it can't be written.
    """
    kind = path.suffix.removeprefix(".")
    metadata = _METADATA[kind]
    matplotlib = import_matplotlib()
    with matplotlib.rc_context({"svg.hashsalt": "hpcgnn", "svg.fonttype": "path"}):
        _write(
            path,
            lambda place: figure.savefig(place, format=kind, dpi=144, metadata=metadata),
        )


def _is_measured(path: Path) -> bool:
    """Return whether the file is the JSON of a measurement."""
    try:
        content = json.loads(_content(path))
        return "hpcgnn" in content["machine"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_drawn(path: Path) -> bool:
    return _SIGN.encode() in _content(path)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", file=path) from None


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    try:
        with atomic.claim(path) as temporary:
            fill(temporary)
            atomic.publish(temporary, path)
    except OSError as error:
        raise OutputError(f"can't be written: {error.strerror}", file=path) from None


def import_matplotlib() -> Any:
    """Import matplotlib and return it.

    Raises:
        InputError: it isn't installed, or can't be loaded.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("a drawing needs matplotlib: pip install matplotlib") from None
    except ValueError as error:  # such as a MPLBACKEND that it doesn't know
        raise InputError(f"matplotlib can't be loaded: {shortened(str(error))}") from None
    return matplotlib


def machine() -> dict[str, Any]:
    """Return the machine, the time and the load of a measurement."""
    try:
        load = round(os.getloadavg()[0], 2)
    except OSError:
        load = None
    return {
        "time": now(),
        "processor": system.processor_name(),
        "cores": os.cpu_count(),
        "load": load,
        "free_bytes": system.available_memory(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "hpcgnn": __version__,
    }
