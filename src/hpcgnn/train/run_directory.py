"""The run directory: making it, locking it against other jobs, and its files' origins."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, OutputError
from hpcgnn.storage.write import atomic
from hpcgnn.train.config import Config
from hpcgnn.train.journal import check_regular

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

ENDED = "ENDED"  # a file with a line about how the run ended
REQUEUE = "REQUEUE"  # a file left by a run that stopped early and is to be resumed
PATIENCE = 60.0  # seconds: a requeued job may start before the old one's last rank has exited
_POLL = 0.5
_START_BYTES = 1 << 16


@contextmanager
def held(
    run_dir: Path,
    comm: Communicator,
    *,
    fresh: bool = False,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Make the directory, and lock it against other jobs within the context; collective.

    There is no protection on file systems without locks.

    Args:
        fresh: the run starts anew; a directory with checkpoints of another run is then refused.
        patience: seconds to wait for another job.

    Raises:
        InputError: another job still trains there after `patience` seconds, there are checkpoints
            though `fresh`, or files with names that a run uses were not written by a run.
        OutputError: it can't be made.
    """
    descriptor = None
    try:
        with agreed(comm, "run directory"):
            try:
                if comm.rank == 0:
                    run_dir.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(run_dir, os.O_RDONLY)
                    _lock(descriptor, run_dir, patience)
                    _refuse_others(run_dir)
                    if fresh:
                        _refuse_checkpoints(run_dir)
            except FileExistsError:
                text = "is not a folder: choose another --run-dir"
                raise InputError(text, file=run_dir) from None
            except OSError as error:
                raise OutputError(f"can't be written: {error.strerror}", file=run_dir) from None
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_config(run_dir: Path, comm: Communicator, config: Config) -> None:
    """Write `config.json`, once the run is known to be valid; collective.

    Raises:
        OutputError: it can't be written.
    """
    path = run_dir / "config.json"
    with agreed(comm, "config.json"):
        if comm.rank != 0:
            return
        try:
            with atomic.claim(path) as temporary:
                text = json.dumps(json.loads(config.to_json()), indent=2)
                temporary.write_text(text + "\n", encoding="utf-8")
                atomic.publish(temporary, path)
        except OSError as error:
            raise OutputError(f"can't be written: {error.strerror}", file=path) from None


def _refuse_others(run_dir: Path) -> None:
    """Raise InputError if files that training replaces or removes were not written by a run."""
    signs = {
        run_dir / "config.json": b'"halo_buffer":',
        run_dir / "metrics.jsonl": b'"epoch_seconds":',
        run_dir / "starts.jsonl": b'"from_epoch":',
        run_dir / "ranks.jsonl": b'_seconds": [',
        run_dir / REQUEUE: None,
        **dict.fromkeys(run_dir.glob("profile/rank-*.json"), b'"schemaVersion":'),
    }
    for path, sign in signs.items():
        if check_regular(path) and not _is_ours(path, sign):
            raise _not_ours(path)
        if path.is_symlink():  # perhaps to another run's file
            raise InputError("is a link: choose another --run-dir, or remove it", file=path)
    for name in ("best.h5", "last.h5"):  # else training would find out, and lose epochs
        atomic.refuse_irregular(run_dir / "checkpoints" / name)
    ended = run_dir / ENDED  # of any content: a run's, if config.json is there
    if check_regular(ended) and not (run_dir / "config.json").exists():
        raise _not_ours(ended)


def _not_ours(path: Path) -> InputError:
    return InputError(
        "was not written by a run of hpcgnn, and training would replace it: choose another "
        "--run-dir, or remove it",
        file=path,
    )


def _refuse_checkpoints(run_dir: Path) -> None:
    if any((run_dir / "checkpoints").glob("*.h5")):
        raise InputError(
            "holds the checkpoints of a run: --resume continues it (resume=True in Python); "
            "choose another --run-dir for a new one, or remove this one",
            file=run_dir,
        )


def _is_ours(path: Path, sign: bytes | None) -> bool:
    """Return whether a file is empty, cut off in its first record, or has `sign` near its start."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    torn = start.startswith((b'{"epoch": ', b'{"time": ')) and b"\n" not in start
    return torn or not start.strip(b"\0 \n") or (sign is not None and sign in start)


def _lock(descriptor: int, run_dir: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return
            if time.monotonic() > end:
                raise InputError(
                    "another job trains in this run directory: wait for it, cancel it, or choose "
                    "another --run-dir",
                    file=run_dir,
                ) from None
            time.sleep(_POLL)
        else:
            return


_LONGEST = 1000  # characters of a line


def note_end(run_dir: Path, text: str) -> None:
    """Write a line about how the run ended; a folder that can't be written is left without it."""
    path = run_dir / ENDED
    with suppress(OSError, OutputError), atomic.claim(path) as temporary:
        temporary.write_text(text[:_LONGEST] + "\n", encoding="utf-8")
        atomic.publish(temporary, path)


def how_it_ended(run_dir: Path) -> str:
    """Return the line of `note_end`, or an empty string."""
    path = run_dir / ENDED
    try:
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(_LONGEST).partition("\n")[0]
    except OSError:
        pass
    return ""
