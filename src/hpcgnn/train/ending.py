"""Start and end of a run in its directory: its journal, how it ended, whether to requeue it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.launcher import launcher
from hpcgnn.display import Display, Stage
from hpcgnn.errors import OutputError
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config
from hpcgnn.train.journal import Journal
from hpcgnn.train.progress import Progress
from hpcgnn.train.reporter import Reporter
from hpcgnn.train.run_directory import ENDED, REQUEUE, note_end
from hpcgnn.train.scores import Monitor

NO_VALIDATION = "no validation node has a label that can be scored"


class InDirectory(Protocol):
    """What a `Trainer` has."""

    comm: Communicator
    run_dir: Path
    config: Config
    store: CheckpointStore
    journal: Journal | None
    rank_journal: Journal | None
    reporter: Reporter
    progress: Progress
    monitor: Monitor
    validated: bool
    display: Display
    epoch: int
    start: int
    of_program: bool


def open_journals(trainer: InDirectory) -> tuple[Journal | None, Journal | None]:
    """metrics.jsonl and ranks.jsonl, on rank 0; nothing is left of how an attempt before ended.

    Collective.
    """
    journal: Journal | None = None
    ranks: Journal | None = None
    with agreed(trainer.comm, "metrics.jsonl"):
        if trainer.comm.rank == 0:
            path = trainer.run_dir / "metrics.jsonl"
            journal = Journal(path, trainer.epoch, trainer.config.training.epochs)
            path = trainer.run_dir / "ranks.jsonl"
            ranks = Journal(path, trainer.epoch, beside=True)
            try:
                for name in (REQUEUE, ENDED):
                    path = trainer.run_dir / name
                    path.unlink(missing_ok=True)
            except OSError as error:
                text = f"can't be removed: {error.strerror}; move it away"
                raise OutputError(text, file=path) from None
    return journal, ranks


def epochs_shown(trainer: InDirectory) -> AbstractContextManager[Stage]:
    """Shows how many epochs are over, of those that this start is to train."""
    left = trainer.config.training.epochs - trainer.epoch
    return trainer.display.stage("train", left, "epochs", spoken=True)


def say_stop(trainer: InDirectory, reason: str, first: int) -> None:
    """Say why the run stops: the reason that rank `first` was given; collective."""
    reason = trainer.comm.broadcast(reason, first, "agree to stop")
    if trainer.comm.rank == 0:
        trainer.reporter.say(f"stopping after epoch {trainer.epoch}: {reason}")


def say_end(trainer: InDirectory, finished: bool) -> None:
    """Close the journal, say how it ended, and leave word of it; collective."""
    for journal in (trainer.journal, trainer.rank_journal):
        if journal is not None:
            journal.close()
    if not finished:
        _ask_for_requeue(trainer)
    if trainer.comm.rank != 0:
        return
    reporter, progress, epoch = trainer.reporter, trainer.progress, trainer.epoch
    if not finished:
        reporter.say(f"stopped after epoch {epoch}; to go on: {_way_on(trainer)}")
        return
    reason = progress.reason(trainer.config.training.patience)
    if epoch == trainer.start > 0:
        reporter.say(
            f"{reason} at epoch {epoch}; nothing was left to train: more --epochs go on, "
            "or a larger --patience where that ended it"
        )
    elif reason != "finished":
        reporter.say(f"{reason}, after epoch {epoch}")
    nothing = "no validation gave a score" if trainer.validated else NO_VALIDATION
    reporter.say(progress.best_line(trainer.monitor.shown, nothing, epoch))
    note_end(trainer.run_dir, reason)


def _way_on(trainer: InDirectory) -> str:
    if trainer.of_program:
        return f"Trainer(..., run_dir={str(trainer.run_dir)!r}, resume=True)"
    return f"{launcher(trainer.comm.size)}hpcgnn train --resume {trainer.run_dir}"


def check_failure(trainer: InDirectory, ended: bool = False) -> None:
    """Collective.

    Raises:
        OutputError: a checkpoint could not be written, where that matters.
    """
    failure = trainer.store.missing() if ended else ""
    if trainer.config.checkpoints.must_succeed:
        failure = failure or trainer.store.error
    failure = trainer.comm.broadcast(failure, where="checkpoint failure")
    if failure:
        raise OutputError(f"a checkpoint could not be written: {failure}")


def _ask_for_requeue(trainer: InDirectory) -> None:
    with agreed(trainer.comm, REQUEUE):
        if trainer.comm.rank != 0:
            return
        path = trainer.run_dir / REQUEUE
        try:
            path.touch()
            if trainer.store.newest_epoch() <= trainer.start:
                path.unlink()
                raise OutputError(
                    f"stopped after epoch {trainer.epoch}, but no checkpoint after epoch "
                    f"{trainer.start} could be written, so the job isn't requeued: "
                    f"{trainer.store.error}"
                )
        except OSError as error:
            raise OutputError(
                f"can't be written ({error.strerror}), so a job script won't requeue this run: "
                f"see to its run directory; it stopped after epoch {trainer.epoch}",
                file=path,
            ) from None
