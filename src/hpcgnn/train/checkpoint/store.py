"""The checkpoints of a run directory: written in the background, pruned, and found again."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, OutputError, warning
from hpcgnn.storage.write import atomic
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.file import Checkpoint

BEST, LAST = "best.h5", "last.h5"
_NAME = re.compile(r"epoch-(\d{6,13})\.h5")
_PERIODIC = "epoch"


class WritingDesk:
    """Passes checkpoints to one writing thread; while it writes, one more can wait.

    A newer checkpoint of the same kind replaces the waiting one; one of another kind blocks until
    the place is free, at most for the time of a write.

    Args:
        write: `write(kind, checkpoint)`, which must not raise.
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
        """Block until nothing is being written or waiting."""
        with self._moved:
            self._moved.wait_for(lambda: not self._busy)

    def close(self) -> None:
        self._pool.shutdown()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._write(*job)
                job = None  # else it would stay in memory with the next one
        finally:
            with self._moved:
                self._busy = False
                self._moved.notify_all()

    def _next(self) -> tuple[str, Checkpoint] | None:
        with self._moved:
            job, self._waiting = self._waiting, None
            if job is None:
                self._busy = False  # under the same lock, else a `put` in between would be lost
            self._moved.notify_all()
            return job


def name_also(path: Path, name: str) -> None:
    """Make `last.h5` or `best.h5` a hard link to the checkpoint `path`, or a copy without links.

    Raises:
        OutputError: it can't be made; the former file of this name is intact.
    """
    named = path.with_name(name)
    with atomic.claim(named) as temporary:
        # A link can only be made under a new name; it is then moved over the claimed file.
        other = temporary.with_name(temporary.name.replace(name, f"{name}.link"))
        try:
            try:
                os.link(path, other)
            except OSError:
                _copy(path, temporary)
            else:
                other.replace(temporary)
        except OSError as error:
            raise atomic.write_error(named, error) from None
        finally:
            atomic.discard(other)
        atomic.publish(temporary, named)


def best_or_last(place: Path) -> Path:
    """Return a checkpoint file as it is; for a run directory, `best.h5`, or `last.h5` without it.

    A warning tells if there was a best epoch, so that `best.h5` has been lost.

    Raises:
        InputError: the directory has neither.
    """
    if not place.is_dir():
        if place.name == BEST and not place.exists() and place.with_name(LAST).is_file():
            raise InputError(
                f"no such file, since there was no validation score: use {LAST} in the same folder",
                file=place,
            )
        return place
    for name in (BEST, LAST):
        found = place / "checkpoints" / name
        if found.is_file():
            if name == LAST:
                _say_lost_best(found)
            return found
    raise InputError(
        f"is not a run directory with checkpoints/{BEST} or checkpoints/{LAST}: give a checkpoint",
        file=place,
    )


def _say_lost_best(last: Path) -> None:
    with suppress(InputError):  # whoever reads the file will say what is wrong with it
        best, epoch = files.read_best_epoch(last), files.read_epoch(last)
        if best not in (0, epoch):
            warning(
                f"{last.with_name(BEST)}: is missing, epoch {best}: {LAST}, epoch {epoch}, used"
            )


def _copy(path: Path, temporary: Path) -> None:
    shutil.copyfile(path, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())


class CheckpointStore:
    """Writes, prunes and finds the checkpoints in one folder.

    Rank 0 writes in the background while training continues: one checkpoint at a time, with at
    most one more waiting, see `WritingDesk`. The text of a failed write is kept by `failure`, and
    earlier checkpoints stay; a failed best one is written again after the next successful write.
    Checkpoints with sharded rows are written by all ranks.

    Args:
        keep: number of newest checkpoints kept besides `best.h5`.

    Attributes:
        before_writing: called on rank 0 before it writes, to flush what must be on disk first.
    """

    def __init__(self, folder: Path, comm: Communicator, keep: int) -> None:
        self.folder, self.comm, self.keep = folder, comm, keep
        self.error = ""
        self.before_writing: Callable[[], None] = lambda: None
        self._newest = 0  # epoch of the newest checkpoint that was written or read
        self._lost: dict[str, str] = {}  # by kind: why its newest one is not on disk
        self._again: Checkpoint | None = None  # the best one, where it couldn't be written
        self.closed = False
        self._desk = WritingDesk(self._write) if comm.rank == 0 else None
        with agreed(comm, "run directory"):
            try:
                if comm.rank == 0:
                    folder.mkdir(parents=True, exist_ok=True)
                    atomic.remove_abandoned(folder)
            except OSError as error:
                raise OutputError(f"can't be made: {error.strerror}", file=folder) from None

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Write `epoch-N.h5` or `best.h5`, then `last.h5`; returns before it is on disk.

        A checkpoint that is still waiting when the next of its kind arrives is not written.
        """
        kind = BEST if best else _PERIODIC
        if self.comm.allreduce(len(checkpoint.sharded), "max", where="checkpoint"):
            self._write(kind, checkpoint, together=True)
        elif self._desk is not None:
            self._desk.put(kind, checkpoint)

    def failure(self) -> str:
        """Return the last write failure so far, or an empty string; on rank 0, without waiting."""
        return self.error

    def missing(self) -> str:
        """After `finish`, return why the newest or the best is not on disk, or ""; on rank 0."""
        return "; ".join(self._lost.values())

    def finish(self) -> None:
        """Wait until everything is on disk; retry a best checkpoint that failed."""
        if self._desk is not None:
            self._desk.wait()
        again = self._again
        sharded = 0 if again is None else len(again.sharded)
        together = self.comm.allreduce(sharded, "max", where="checkpoint") > 0
        if again is not None:
            self._put(BEST, again, together)
        self.comm.barrier(where="checkpoint")

    def close(self) -> None:
        self.closed = True
        if self._desk is not None:
            self._desk.close()

    def paths(self) -> list[Path]:
        """Return the checkpoints by epoch, newest first."""
        found = [path for path in self.folder.glob("epoch-*.h5") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_epoch_of, reverse=True)

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """Return the newest intact checkpoint, `best.h5` included; None if there are none.

        Damaged ones are skipped with a warning. Collective.

        Raises:
            InputError: there are some, but none can be used.
        """
        found: tuple[Path, Checkpoint] | None = None
        with agreed(self.comm, "checkpoint"):
            if self.comm.rank == 0:
                found = self._find()
        found = self.comm.broadcast(found, where="checkpoint")
        self._newest = found[1].epoch if found else 0
        return found

    def newest_epoch(self) -> int:
        """Return the epoch of the newest checkpoint written or resumed from; 0 without."""
        return self._newest

    def best_of(self, newest: Checkpoint) -> Checkpoint | None:
        """Return the content of `best.h5`; None if it is missing or damaged. Not collective.

        If it isn't that of the best epoch so far, but a periodic checkpoint of this epoch is left,
        it is replaced; without one, a warning tells.

        Args:
            newest: the checkpoint to resume from, which knows the best epoch.
        """
        epoch, path = newest.progress.get("best_epoch"), self.folder / BEST
        if type(epoch) is not int or epoch < 1:
            return None
        found: Checkpoint | None = None
        trouble = ""
        try:
            found = files.read(path)
            if found.epoch != epoch:
                trouble = f"{path}: is of epoch {found.epoch}"
        except InputError as error:
            trouble = str(error)
        if not trouble:
            return found
        periodic = path.with_name(f"epoch-{epoch:06d}.h5")
        try:
            found = files.read(periodic)
            name_also(periodic, BEST)
        except (InputError, OutputError):
            warning(
                f"{trouble}, but the best epoch so far is {epoch}: {BEST} will be written only "
                "after a better one"
            )
            return found
        warning(f"{trouble}: replaced by {periodic.name}, the best epoch so far")
        return found

    def _find(self) -> tuple[Path, Checkpoint] | None:
        refused: list[InputError] = []
        epochs = {path: _epoch_of(path) for path in self.paths()}
        for path in self.folder.glob("[!.]*.h5"):  # others, such as best.h5
            if path not in epochs:
                epochs[path] = -1
                with suppress(InputError):  # reported below, in its turn
                    epochs[path] = files.read_epoch(path)
        for path in sorted(epochs, key=lambda path: epochs[path], reverse=True):
            try:
                checkpoint = files.read(path)
                if checkpoint.epoch != epochs[path]:
                    raise InputError("belongs to another epoch", file=path, value=checkpoint.epoch)
            except InputError as error:
                refused.append(error)
                continue
            for damage in refused:
                warning(f"{damage}; trying the checkpoint before it")
            return path, checkpoint
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise InputError(
                f"no checkpoint of this run can be read: {refused[0]}{more}; restore one, or "
                "choose another --run-dir"
            )
        return None

    def _write(self, kind: str, checkpoint: Checkpoint, together: bool = False) -> None:
        written = self._put(kind, checkpoint, together)
        if written and self._again is not None:
            self._put(BEST, self._again, together)

    def _put(self, kind: str, checkpoint: Checkpoint, together: bool) -> bool:
        """Write it and return whether it is on disk; with `together`, called by all ranks."""
        name = f"epoch-{checkpoint.epoch:06d}.h5" if kind == _PERIODIC else kind
        if self.comm.rank == 0:
            self.before_writing()
            with suppress(OSError):  # the folder may have been removed meanwhile
                self.folder.mkdir(exist_ok=True)
        try:
            if together:
                files.write_sharded(self.folder / name, checkpoint, self.comm)
            else:
                files.write(self.folder / name, checkpoint)
            if self.comm.rank == 0 and checkpoint.epoch >= self._newest:
                name_also(self.folder / name, LAST)
        except OutputError as error:
            self._failed(kind, checkpoint, str(error))
            return False
        except Exception as error:  # else it would be lost in the background
            if together:
                raise
            self._failed(kind, checkpoint, str(error) or type(error).__name__)
            return False
        self._lost.pop(kind, None)
        if kind == BEST:
            self._again = None
        self._newest = max(self._newest, checkpoint.epoch)
        self._prune()
        return True

    def _failed(self, kind: str, checkpoint: Checkpoint, text: str) -> None:
        self.error = self._lost[kind] = text
        if kind == BEST:
            self._again = checkpoint
        if self.comm.rank == 0:
            good = [path.name for path in self.paths() if _epoch_of(path) <= self._newest]
            last = good[0] if good else "none"
            warning(f"CHECKPOINT NOT WRITTEN: {text}; newest good checkpoint: {last}")

    def _prune(self) -> None:
        """Delete old checkpoints; those after the newest were skipped as damaged, not counted."""
        if self.comm.rank == 0:
            good = [path for path in self.paths() if _epoch_of(path) <= self._newest]
            for path in good[self.keep :]:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _epoch_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1
