"""The page and its figures as files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcgnn.errors import InputError, OutputError
from hpcgnn.report.figures import draw
from hpcgnn.report.page import SIGN, page
from hpcgnn.report.run import RunFiles
from hpcgnn.report.summary import metric_of
from hpcgnn.storage.write import atomic
from hpcgnn.train.journal import check_regular

PAGE = "index.html"
_START = 400  # bytes of a page within which its sign stands


def write_report(runs: Sequence[RunFiles], folder: Path, *, force: bool) -> Path:
    """Write `index.html` and a PNG per figure into `folder`; returns the page's path.

    Args:
        force: replace a page of ours, and the figures beside it.

    Raises:
        InputError: something else has the page's name, a page is there already without `force`, or
            matplotlib is missing.
        OutputError: a file can't be written.
    """
    target = folder / PAGE
    _check(target, force)
    drawings = draw(runs, metric_of(runs[0]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            _write(folder / f"{drawing.name}.png", drawing.png())
        _write(target, page(runs, drawings).encode())
    except OSError as error:
        raise OutputError(f"can't be written: {error.strerror}", file=folder) from None
    return target


def _check(target: Path, force: bool) -> None:
    if target.parent.is_symlink() or not check_regular(target):
        if target.parent.is_symlink():
            raise InputError("is a link: choose another folder with -o", file=target.parent)
        return
    with target.open("rb") as file:
        ours = SIGN.encode() in file.read(_START)
    if not ours:
        raise InputError(
            "exists and is no page of hpcgnn report: choose another folder with -o", file=target
        )
    if not force:
        raise InputError("exists already: choose another folder, or say --force", file=target)


def _write(path: Path, content: bytes) -> None:
    if check_regular(path) and path.is_symlink():
        raise InputError("is a link: choose another folder with -o", file=path)
    with atomic.claim(path) as temporary:
        temporary.write_bytes(content)
        atomic.publish(temporary, path)
