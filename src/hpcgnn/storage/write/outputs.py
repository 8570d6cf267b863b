"""The one rule by which a verb replaces a file that is there already."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.errors import InputError
from hpcgnn.storage.read.reader import format_of
from hpcgnn.storage.schema import WHAT

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


def check_output(
    path: Path,
    format: str,
    *,
    force: bool,
    inputs: Iterable[str | Path | None] = (),
    read_format: Callable[[Path], str | None] = format_of,
) -> None:
    """Nothing lies under the name, or what may be replaced: by `force`, a file of this format.

    Args:
        format: of the file to be, one of `schema.WHAT`.
        force: replace a former file.
        inputs: what the same call reads, which is never replaced; None and absent files are none.
        read_format: tells the format of a file that is there, for those that are not HDF5.

    Raises:
        InputError: something else lies there, or a former file without `force`.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing, or what writing it will complain of
        return
    if stat.S_ISDIR(mode):
        return
    if any(_same(path, Path(source)) for source in inputs if source is not None):
        raise InputError("is read by this very call: choose another name", file=path)
    if not stat.S_ISREG(mode):
        raise InputError("is a link, device, pipe or socket: choose another name", file=path)
    if not force:
        raise InputError("exists already: choose another name, or say --force", file=path)
    if read_format(path) != format:
        raise InputError(
            f"exists and is no {WHAT[format]} of hpcgnn, so --force doesn't replace it: choose "
            "another name, or remove it",
            file=path,
        )


def check_output_together(
    comm: Communicator,
    path: Path,
    format: str,
    *,
    force: bool,
    inputs: Iterable[str | Path | None] = (),
    read_format: Callable[[Path], str | None] = format_of,
) -> None:
    """`check_output` as rank 0 sees the files; collective, and so are its errors."""
    error: InputError | None = None
    if comm.rank == 0:
        try:
            check_output(path, format, force=force, inputs=inputs, read_format=read_format)
        except InputError as caught:
            error = caught
    # Told to all first: it is nothing about rank 0.
    comm.agree(comm.broadcast(error, where="check the output"), where="check the output")


def _same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:
        return False
