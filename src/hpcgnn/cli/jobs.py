"""`hpcgnn jobs`: copy the job scripts, to be changed for a cluster."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from hpcgnn.errors import InputError, OutputError, say

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="gets a folder jobs/")


def run(args: argparse.Namespace, comm: None) -> int:
    source = templates()
    target: Path = args.folder / "jobs"
    if target.exists() or target.is_symlink():
        raise InputError("exists already: choose another folder, or remove it", file=target)
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    except (OSError, shutil.Error) as error:
        text = getattr(error, "strerror", None) or error
        raise OutputError(f"can't be written: {text}", file=target) from None
    count = sum(path.is_file() for path in target.rglob("*"))
    say(f"{target}: {count} files; in {args.folder}: sbatch --nodes=2 jobs/train.sbatch GRAPH.h5")
    return 0


def templates() -> Path:
    """The job scripts: inside an installed package, beside the sources of a clone.

    Raises:
        InputError: they are in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "jobs", package.parents[1] / "jobs"):
        if (folder / "train.sbatch").is_file():
            return folder
    raise InputError("the job scripts are missing from this installation", file=package / "jobs")
