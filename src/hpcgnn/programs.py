"""Other programs, looked up in PATH without those of the current folder."""

from __future__ import annotations

import os
import shutil


def find_program(name: str) -> str | None:
    """Its absolute path, or None. Entries of PATH that are empty or relative don't count."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if os.path.isabs(f)))  # noqa: PTH117
