"""The checkpoints of a run directory: written beside the training, pruned, found again."""

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
_BEST = "best.h5"
_PERIODIC = "epoch"


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


class CheckpointStore:
    """Writes, prunes and finds checkpoints below one folder.

    Rank 0 writes in the background while training goes on: one checkpoint at a time, and one more
    may wait, see `WritingDesk`. A failed write is told to `failure` for good, and the checkpoints
    written before stay; the best one is written again as soon as another could be written. All
    ranks write those with sharded rows.

    Args:
        keep: newest checkpoints kept beside `best.h5`.

    Attributes:
        before_writing: called on rank 0 before it writes: what must be on disk first.
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

        One that still waits when the next of its kind comes is left out.
        """
        kind = _BEST if best else _PERIODIC
        if self.comm.allreduce(len(checkpoint.sharded), "max", where="checkpoint"):
            self._write(kind, checkpoint, together=True)
        elif self._desk is not None:
            self._desk.put(kind, checkpoint)

    def failure(self) -> str:
        """The last failure to write so far, or an empty string; on rank 0, without waiting."""
        return self.error

    def missing(self) -> str:
        """After `finish`, why the newest or the best is not on disk, or an empty string; rank 0."""
        return "; ".join(self._lost.values())

    def finish(self) -> None:
        """Wait until everything is on disk; a best one that failed is tried once more."""
        if self._desk is not None:
            self._desk.wait()
        again = self._again
        sharded = 0 if again is None else len(again.sharded)
        together = self.comm.allreduce(sharded, "max", where="checkpoint") > 0
        if again is not None:
            self._put(_BEST, again, together)
        self.comm.barrier(where="checkpoint")

    def close(self) -> None:
        self.closed = True
        if self._desk is not None:
            self._desk.close()

    def paths(self) -> list[Path]:
        """Checkpoints by epoch, newest first."""
        found = [path for path in self.folder.glob("epoch-*.h5") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_epoch_of, reverse=True)

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that is whole, `best.h5` among them; None where there are none.

        Damaged ones are passed over with a warning. Collective.

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
        """Of the checkpoints that were written or gone on from; 0 without."""
        return self._newest

    def _find(self) -> tuple[Path, Checkpoint] | None:
        refused: list[InputError] = []
        epochs = {path: _epoch_of(path) for path in self.paths()}
        for path in self.folder.glob("[!.]*.h5"):  # such as best.h5
            if path not in epochs:
                epochs[path] = -1
                with suppress(InputError):  # told below, where it is its turn
                    epochs[path] = files.read_epoch(path)
        for path in sorted(epochs, key=lambda path: epochs[path], reverse=True):
            try:
                checkpoint = files.read(path)
                if checkpoint.epoch != epochs[path]:
                    raise InputError("is of another epoch", file=path, value=checkpoint.epoch)
            except InputError as error:
                refused.append(error)
                continue
            for damage in refused:
                warning(f"{damage}; trying the checkpoint before it")
            return path, checkpoint
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise InputError(
                f"no checkpoint of this run can be read: {refused[0]}{more}; bring one back, or "
                "choose another --run-dir"
            )
        return None

    def _write(self, kind: str, checkpoint: Checkpoint, together: bool = False) -> None:
        written = self._put(kind, checkpoint, together)
        if written and self._again is not None:
            self._put(_BEST, self._again, together)

    def _put(self, kind: str, checkpoint: Checkpoint, together: bool) -> bool:
        """Whether it is on disk now. All ranks call where they write `together`."""
        name = f"epoch-{checkpoint.epoch:06d}.h5" if kind == _PERIODIC else kind
        if self.comm.rank == 0:
            self.before_writing()
            with suppress(OSError):  # somebody may have removed it meanwhile
                self.folder.mkdir(exist_ok=True)
        try:
            if together:
                files.write_sharded(self.folder / name, checkpoint, self.comm)
            else:
                files.write(self.folder / name, checkpoint)
            if self.comm.rank == 0 and checkpoint.epoch >= self._newest:
                name_last(self.folder / name)
        except OutputError as error:
            self._failed(kind, checkpoint, str(error))
            return False
        except Exception as error:  # in the background nobody would hear of it
            if together:
                raise
            self._failed(kind, checkpoint, str(error) or type(error).__name__)
            return False
        self._lost.pop(kind, None)
        if kind == _BEST:
            self._again = None
        self._newest = max(self._newest, checkpoint.epoch)
        self._prune()
        return True

    def _failed(self, kind: str, checkpoint: Checkpoint, text: str) -> None:
        self.error = self._lost[kind] = text
        if kind == _BEST:
            self._again = checkpoint
        if self.comm.rank == 0:
            good = [path.name for path in self.paths() if _epoch_of(path) <= self._newest]
            last = good[0] if good else "none"
            warning(f"CHECKPOINT NOT WRITTEN: {text}; newest good checkpoint: {last}")

    def _prune(self) -> None:
        """Those after the newest were passed over as damaged, and don't count."""
        if self.comm.rank == 0:
            good = [path for path in self.paths() if _epoch_of(path) <= self._newest]
            for path in good[self.keep :]:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _epoch_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1
