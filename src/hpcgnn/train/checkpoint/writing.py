"""Checkpoints on their way to the disk: one at a time, and `last.h5` beside them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.write import atomic
from hpcgnn.train.checkpoint.file import Checkpoint


class WritingDesk:
    """Hands checkpoints to one thread. While it writes, one more may wait.

    A newer checkpoint of the same kind takes the place of the one that waits; one of another kind
    waits for its place, no longer than a write takes.

    Args:
        write: `write(kind, checkpoint)`, which keeps its errors to itself.
    """

    def __init__(self, write: Callable[[str, Checkpoint], None]) -> None:
        self._write = write
        self._moved = threading.Condition()
        self._waiting: tuple[str, Checkpoint] | None = None
        self._busy = False
        self._pool = ThreadPoolExecutor(1, "checkpoint")

    def put(self, kind: str, checkpoint: Checkpoint) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._waiting is None or self._waiting[0] == kind)
            self._waiting = (kind, checkpoint)
            if not self._busy:
                self._busy = True
                self._pool.submit(self._work)

    def wait(self) -> None:
        """Until nothing is written or waits."""
        with self._moved:
            self._moved.wait_for(lambda: not self._busy)

    def close(self) -> None:
        self._pool.shutdown()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._write(*job)
                job = None  # or it would be held beside the next one
        finally:
            with self._moved:
                self._busy = False
                self._moved.notify_all()

    def _next(self) -> tuple[str, Checkpoint] | None:
        with self._moved:
            job, self._waiting = self._waiting, None
            if job is None:
                self._busy = False  # under the same lock, or a `put` in between would be lost
            self._moved.notify_all()
            return job


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
