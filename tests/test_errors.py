"""Messages of the package are one line, whatever names and values they contain."""

from __future__ import annotations

import errno
import re

import pytest

from hpcgnn.comm.liveness.failure import Failure
from hpcgnn.errors import InputError, human, printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Gr\u00fc\u00dfe, \u65e5\u672c: 1 \u2264 2", None),
        ("two\nlines\r\tand \x0b\x85\u2028more", r"two\nlines\r\tand \x0b\x85\u2028more"),
        ("\x1b[2K\x1b]52;c;cm0K\x07\x7f\x9b1A", r"\x1b[2K\x1b]52;c;cm0K\x07\x7f\x9b1A"),
        ("gnp.\u202e5h.\u2066x\u200b", r"gnp.\u202e5h.\u2066x\u200b"),
        ("graph\udcff.h5", r"graph\udcff.h5"),
    ],
)
def test_terminal_control_sequences_are_escaped(text, shown, capsys):
    shown = text if shown is None else shown
    assert printable(text) == printable(shown) == shown
    say(text, text)
    assert capsys.readouterr().out == f"{shown}\n{shown}\n"
    error = InputError("is no graph", file=text, dataset=text)
    assert str(error) == f"{shown}: {shown}: is no graph"
    Failure(2, text, trace=(text,)).print("rank 1")
    assert capsys.readouterr().err == f"[rank 1] {shown}\nhpcgnn: error: rank 1: {shown}\n"


def test_amounts_are_readable():
    sizes = (0, 999, 1000, 45_678, 999_949, 999_950, 2.5e9, 1e12, 3e15)
    shown = "0 B, 999 B, 1.0 kB, 45.7 kB, 1.0 MB, 1.0 MB, 2.5 GB, 1.0 TB, 3,000.0 TB"
    assert ", ".join(map(human, sizes)) == shown


def test_long_values_are_shortened():
    text = str(InputError("must be a number", value="9" * 5000))
    assert len(text) < 250 and text.startswith("must be a number (found '999")
    error = InputError("must be a number", value=[1 << 20_000])  # Python doesn't print it
    assert str(error) == "must be a number (found a list too long to print)"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError("lib.so: cannot open shared object file: Too many open files"),
        ImportError("lib.so: cannot open shared object file: Too many open files"),
    ],
)
def test_too_many_open_files_are_reported_in_one_line_with_advice(error):
    failure = Failure.of(error)
    assert failure.status == 2 and not failure.trace and "ulimit -n" in failure.line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"written \(No space left"),
        (OSError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "No usable"),
    ],
)
def test_a_full_disk_below_temporary_files_is_reported_in_one_line_with_advice(error, words):
    failure = Failure.of(error)
    assert failure.status == 2 and not failure.trace and "TMPDIR" in failure.line
    assert re.search(words, failure.line)


def test_threads_that_pyarrow_can_not_start_are_a_lack_of_memory():
    pyarrow = pytest.importorskip("pyarrow")
    text = "Unknown error: Failed to launch worker thread: Resource temporarily unavailable"
    failure = Failure.of(pyarrow.ArrowException(text))
    assert failure.status == 5 and not failure.trace and "worker thread" in failure.line
