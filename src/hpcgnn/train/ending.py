"""How a run ended, in a file of its run directory.

There is none while it trains, nor where it was killed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hpcgnn.errors import OutputError
from hpcgnn.storage import atomic

ENDED = "ENDED"
_LONGEST = 1000  # characters of a line


def note_end(run_dir: Path, text: str) -> None:
    """Say in one line how the run ended; a folder that can't be written stays without."""
    path = run_dir / ENDED
    with suppress(OSError, OutputError), atomic.claim(path) as temporary:
        temporary.write_text(text[:_LONGEST] + "\n", encoding="utf-8")
        atomic.publish(temporary, path)


def how_it_ended(run_dir: Path) -> str:
    """The line of `note_end`, or an empty string."""
    path = run_dir / ENDED
    try:
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(_LONGEST).partition("\n")[0]
    except OSError:
        pass
    return ""
