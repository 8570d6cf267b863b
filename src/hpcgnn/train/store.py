"""The checkpoints of a run directory: written beside the training, pruned, found again."""

from __future__ import annotations

import re
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError, OutputError, say
from hpcgnn.storage import atomic
from hpcgnn.train import checkpoint as files
from hpcgnn.train.checkpoint import Checkpoint
from hpcgnn.train.last import name_last

_NAME = re.compile(r"epoch-(\d{6,})\.h5")


class CheckpointStore:
    """Writes, prunes and finds checkpoints below one folder.

    Rank 0 writes in the background while training goes on; a failed write is told to `failure` for
    good, and the checkpoints written before stay. All ranks write those with sharded rows.

    Args:
        keep: newest checkpoints kept beside `best.h5`.
    """

    def __init__(self, folder: Path, comm: Communicator, keep: int) -> None:
        self.folder, self.comm, self.keep = folder, comm, keep
        self.error = ""
        self._writer = ThreadPoolExecutor(1, "checkpoint") if comm.rank == 0 else None
        self._pending: list[Future[None]] = []
        problem: OutputError | None = None
        if comm.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                atomic.remove_abandoned(folder)
            except OSError as error:
                problem = OutputError(f"can't be made: {error.strerror}", file=folder)
        comm.agree(problem, where="run directory")

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Write `epoch-N.h5` or `best.h5`, then `last.h5`; returns before it is on disk."""
        name = "best.h5" if best else f"epoch-{checkpoint.epoch:06d}.h5"
        path = self.folder / name
        sharded = self.comm.allreduce(len(checkpoint.sharded), "max", where="checkpoint")
        if sharded:
            try:
                files.write_sharded(path, checkpoint, self.comm)
                self._written(path, checkpoint.epoch)
            except HpcgnnError as error:
                self._failed(str(error))
        elif self._writer is not None:
            self._pending.append(self._writer.submit(self._write, path, checkpoint))

    def failure(self) -> str:
        """The last failure to write so far, or an empty string; on rank 0, without waiting."""
        self._pending = [future for future in self._pending if not future.done()]
        return self.error

    def finish(self) -> None:
        """Wait until everything is on disk."""
        for future in self._pending:
            future.result()
        self._pending = []
        self.comm.barrier(where="checkpoint")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()

    def paths(self) -> list[Path]:
        """Checkpoints by epoch, newest first."""
        found = [
            path
            for path in self.folder.glob("epoch-*.h5")
            if _NAME.fullmatch(path.name) and path.is_file()
        ]
        return sorted(found, key=_epoch_of, reverse=True)

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning."""
        found = None
        if self.comm.rank == 0:
            for path in self.paths():
                try:
                    found = path, files.read(path)
                    break
                except InputError as error:
                    _warn(f"{error}; trying the checkpoint before it")
        return self.comm.broadcast(found, where="checkpoint")

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        try:
            files.write(path, checkpoint)
            self._written(path, checkpoint.epoch)
        except Exception as error:  # nobody else would hear of it
            self._failed(str(error) or type(error).__name__)

    def newest_epoch(self) -> int:
        """Of the checkpoints that were written; 0 without."""
        return max((_epoch_of(path) for path in self.paths()), default=0)

    def _failed(self, text: str) -> None:
        self.error = text
        if self.comm.rank == 0:
            written = self.paths()
            last = written[0].name if written else "none"
            _warn(f"CHECKPOINT NOT WRITTEN: {text}; newest good checkpoint: {last}")

    def _written(self, path: Path, epoch: int) -> None:
        if self.comm.rank == 0:
            if epoch >= self.newest_epoch():
                name_last(path)
            self._prune()

    def _prune(self) -> None:
        if self.comm.rank == 0:
            for path in self.paths()[self.keep :]:
                path.unlink(missing_ok=True)


def _epoch_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def _warn(text: str) -> None:
    say(f"hpcgnn: warning: {text}", file=sys.stderr)
