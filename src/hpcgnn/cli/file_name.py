"""The name of a file, as an option takes it."""

from __future__ import annotations

import argparse
from pathlib import Path


def file_name(text: str) -> Path:
    """Return the path of a file; `Path` alone would drop a slash at its end.

    Raises:
        argparse.ArgumentTypeError: the text ends in a slash, as names of folders do.
    """
    if text.endswith(("/", "/.")):
        raise argparse.ArgumentTypeError(
            f"{text} ends in / like the name of a folder, but must name a file: leave the / out"
        )
    return Path(text)
