"""`hpcgnn jobs`: copy the job scripts, to be changed for a cluster."""

from __future__ import annotations

import argparse
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcgnn.errors import InputError, OutputError, say

PARALLEL = False

_SIGN, _START = b"HPCGNN_HOME", 4096  # bytes of jobs/launch.sh among which it stands


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to create the folder jobs/")
    parser.add_argument(
        "--force", action="store_true", help="replace the files of an existing jobs/"
    )


def run(args: argparse.Namespace, comm: None) -> int:
    source = templates()
    target: Path = args.folder / "jobs"
    if os.path.lexists(target):
        if not args.force:
            raise InputError("exists already: choose another folder, or use --force", file=target)
        for path in target.rglob("*"):
            if path.is_symlink():  # copying would write through it
                raise InputError("is a link: remove it, or choose another folder", file=path)
        if target.is_symlink() or not _is_ours(target):
            raise InputError(
                "exists and is not a folder of hpcgnn's job scripts, so --force doesn't replace "
                "it: choose another folder, or remove it",
                file=target,
            )
        for path in _copies(source, target).values():
            if path.exists() and not path.is_file():
                raise InputError("is not a regular file: remove it", file=path)
        if target.samefile(source):
            raise InputError(
                "is the folder that the scripts are copied from: choose another folder", file=target
            )
    try:
        _write(source, target)
    except OSError as error:
        raise OutputError(f"can't be written: {error.strerror or error}", file=target) from None
    count = sum(path.is_file() for path in target.rglob("*"))
    command = "sbatch --nodes=2 jobs/train.sbatch GRAPH.h5 --run-dir runs/NAME"
    say(f"{target}: {count} files; in {args.folder}: {command}")
    return 0


def _copies(source: Path, target: Path) -> dict[Path, Path]:
    """Return the place of the copy of each file."""
    files = (path for path in sorted(source.rglob("*")) if path.is_file())
    return {
        path: target / path.relative_to(source)
        for path in files
        if path.parent.name != "__pycache__"
    }


def _write(source: Path, target: Path) -> None:
    """Copy beside the target first, so that a full disk leaves what was there as it was."""
    absent = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".jobs.", dir=target.parent) as temporary:
            copied = Path(temporary, target.name)
            places = _copies(source, copied)
            for path, place in places.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
            if not target.exists():
                copied.rename(target)
                return
            for place in places.values():
                final = target / place.relative_to(copied)
                final.parent.mkdir(parents=True, exist_ok=True)
                place.replace(final)
    except OSError:
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()
        raise


def _is_ours(folder: Path) -> bool:
    try:
        return _SIGN in (folder / "launch.sh").read_bytes()[:_START]
    except OSError:
        return False


def templates() -> Path:
    """Return the folder of job scripts, in the installed package or beside the sources.

    Raises:
        InputError: it is in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "jobs", package.parents[1] / "jobs"):
        if (folder / "train.sbatch").is_file():
            return folder
    raise InputError("the job scripts are missing from this installation", file=package / "jobs")
