"""`last.h5`: always the newest checkpoint of a run, beside `best.h5` or where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage import atomic

BEST, LAST = "best.h5", "last.h5"


def name_last(path: Path) -> None:
    """Make `last.h5` another name of the checkpoint `path`, or a copy where no links can be made.

    Raises:
        OutputError: it can't be made; the `last.h5` of before is intact.
    """
    last = path.with_name(LAST)
    with atomic.claim(last) as temporary:
        # A link is made under a new name only, and is then moved over the claimed file.
        other = temporary.with_name(temporary.name.replace(LAST, f"{LAST}.link"))
        try:
            try:
                os.link(path, other)
            except OSError:
                _copy(path, temporary)
            else:
                other.replace(temporary)
        except OSError as error:
            raise atomic.write_error(last, error) from None
        finally:
            atomic.discard(other)
        atomic.publish(temporary, last)


def best_or_last(place: Path) -> Path:
    """A checkpoint file as it is; of a run directory `best.h5`, or `last.h5` without one.

    Raises:
        InputError: the directory has neither.
    """
    if not place.is_dir():
        if place.name == BEST and not place.exists() and place.with_name(LAST).is_file():
            raise InputError(
                f"no such file, since no validation gave a score: name {LAST}, which is beside it",
                file=place,
            )
        return place
    for name in (BEST, LAST):
        found = place / "checkpoints" / name
        if found.is_file():
            return found
    raise InputError(
        f"is no run directory with checkpoints/{BEST} or checkpoints/{LAST}: name a checkpoint",
        file=place,
    )


def _copy(path: Path, temporary: Path) -> None:
    shutil.copyfile(path, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
