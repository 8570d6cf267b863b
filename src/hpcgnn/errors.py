"""The errors of this package, each with the exit status that a batch job sees.

Every message is one line: what, where, which value, what to do.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 2000  # characters of a message


def printable(text: object) -> str:
    """Return `text` as one line that a terminal displays without interpreting it.

    Line ends, control characters, marks of writing direction and undecodable bytes of a name become
    escapes such as `\\x1b`. Existing escapes stay as they are.
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def shortened(text: str, most: int = 200) -> str:
    """Return `text` without its middle if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 40]} ... {text[-35:]}"


def counted(number: int, what: str) -> str:
    """Return a text like `1 rank`, `2,000 ranks` or `3 classes`."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def human(size: float) -> str:
    """Return a readable number of bytes: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def say(*lines: object) -> None:
    """Print each argument as one `printable` line; use it for all names and values of files."""
    print("\n".join(map(printable, lines)), flush=True)


def warn(*lines: object) -> None:
    """Print like `say` on stderr, in one piece. Errors are ignored: the exit status remains."""
    with suppress(Exception):
        sys.stderr.write("\n".join(map(printable, lines)) + "\n")
        sys.stderr.flush()


def warning(text: str) -> None:
    """Print one line on stderr, marked as a warning of hpcgnn."""
    warn(f"hpcgnn: warning: {text}")


@dataclass(frozen=True)
class Agreed:
    """What a rank knows of an error that all ranks raise together.

    Attributes:
        reports: this rank brought the error, and prints it.
        alone: some ranks had no error of their own, so the message names the rank.
    """

    reports: bool
    alone: bool


class HpcgnnError(Exception):
    """Base of all errors that this package raises on purpose. Exit status 1.

    Attributes:
        agreed: set by `Communicator.agree` when all ranks raise the error together.
    """

    exit_status = 1
    agreed: Agreed | None = None

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        dataset: str | None = None,
        value: object = None,
        rank: int | None = None,
    ) -> None:
        where = []
        if file is not None:
            where.append(str(file))
        if dataset is not None:
            where.append(dataset)
        if rank is not None:
            where.append(f"rank {rank}")
        text = ": ".join([*where, " ".join(str(message).split())])
        if value is not None:
            text += f" (found {shortened(_shown(value))})"
        super().__init__(shortened(printable(text), _LONGEST))


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer too long to print, such as a settings file may hold in hex
        return f"a {type(value).__name__} too long to print"


class InputError(HpcgnnError):
    """A file, an option or a library that can't be used as it is. Exit status 2."""

    exit_status = 2


class OutputError(HpcgnnError):
    """A file that can't be written: no space, no permission, a limit. Exit status 2."""

    exit_status = 2


class KernelError(HpcgnnError):
    """A kernel that can't be compiled or loaded on a GPU. Exit status 1."""


class CommunicationError(HpcgnnError):
    """A rank stopped answering, or is in another part of the program. Exit status 3."""

    exit_status = 3


class NumericalError(HpcgnnError):
    """The loss or a gradient is not finite. Exit status 4."""

    exit_status = 4


class OutOfMemoryError(HpcgnnError):
    """A rank's memory, or its GPU's, was not enough. Exit status 5."""

    exit_status = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the system, torch or the dynamic linker ran out of memory."""
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    signs: tuple[str, ...] = ()
    if isinstance(error, RuntimeError):  # torch, and threads
        signs = ("can't allocate memory", "out of memory", "can't start new thread")
    if type(error).__module__ == "pyarrow.lib":
        signs = ("Failed to launch worker thread",)
    if isinstance(error, ImportError | OSError | RuntimeError):  # the dynamic linker
        signs += ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
    found = any(sign in text for sign in signs) and "static TLS" not in text
    return isinstance(error, MemoryError) or found
