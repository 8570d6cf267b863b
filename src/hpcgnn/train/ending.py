"""The journals of a run, and its end: agreed stops, last lines, requeues, failed checkpoints."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.launcher import launcher
from hpcgnn.display import Display, Stage
from hpcgnn.errors import OutputError, printable
from hpcgnn.tasks.task import Task
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config
from hpcgnn.train.journal import Best, Journal
from hpcgnn.train.run_directory import ENDED, REQUEUE, note_end
from hpcgnn.train.scores import LOSSES, Monitor, Progress
from hpcgnn.train.telemetry import Reporter

NO_VALIDATION = "no validation node has a label to score"


class InDirectory(Protocol):
    """The attributes of a `Trainer` that these functions use."""

    comm: Communicator
    run_dir: Path
    config: Config
    store: CheckpointStore
    journal: Journal | None
    rank_journal: Journal | None
    reporter: Reporter
    progress: Progress
    monitor: Monitor
    task: Task
    validated: bool
    display: Display
    epoch: int
    start: int
    of_program: bool


def open_journals(trainer: InDirectory) -> tuple[Journal | None, Journal | None]:
    """Open metrics.jsonl and ranks.jsonl on rank 0, and remove marks of how an earlier start ended.

    Collective.
    """
    journal: Journal | None = None
    ranks: Journal | None = None
    with agreed(trainer.comm, "metrics.jsonl"):
        if trainer.comm.rank == 0:
            path = trainer.run_dir / "metrics.jsonl"
            last, best = trainer.config.training.epochs, _best_so_far(trainer)
            journal = Journal(path, trainer.epoch, last, best=best)
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


def _best_so_far(trainer: InDirectory) -> Best | None:
    monitor, progress = trainer.monitor, trainer.progress
    if not progress.best_epoch:
        return None
    of_task = monitor.name == trainer.task.metric
    entry = monitor.name if monitor.name in LOSSES else "valid" if of_task else None
    return Best(progress.best_epoch, entry, progress.best)


def epochs_shown(trainer: InDirectory) -> AbstractContextManager[Stage]:
    """Show the number of epochs completed, of those that this start is to train."""
    left = trainer.config.training.epochs - trainer.epoch
    return trainer.display.stage("train", left, "epochs", spoken=True)


def say_stop(trainer: InDirectory, reason: str, first: int) -> None:
    """Print why the run stops: the reason that rank `first` has; collective."""
    reason = trainer.comm.broadcast(reason, first, "agree to stop")
    if trainer.comm.rank == 0:
        trainer.reporter.say(f"stopping after epoch {trainer.epoch}: {reason}")


def say_end(trainer: InDirectory, finished: bool) -> None:
    """Close the journals, print how training ended, and record it; collective."""
    for journal in (trainer.journal, trainer.rank_journal):
        if journal is not None:
            journal.close()
    if not finished:
        _ask_for_requeue(trainer)
    if trainer.comm.rank != 0:
        return
    reporter, progress, epoch = trainer.reporter, trainer.progress, trainer.epoch
    if not finished:
        reporter.say(f"stopped after epoch {epoch}; to continue: {_way_on(trainer)}")
        return
    reason = progress.reason(trainer.config.training.patience)
    if epoch == trainer.start > 0:
        reporter.say(
            f"{reason} at epoch {epoch}; nothing was left to train: continue with more --epochs, "
            "or with a larger --patience if that ended the run"
        )
    elif reason != "finished":
        reporter.say(f"{reason}, after epoch {epoch}")
    nothing = "there was no validation score" if trainer.validated else NO_VALIDATION
    reporter.say(progress.best_line(trainer.monitor.shown, nothing, epoch))
    note_end(trainer.run_dir, reason)


def _way_on(trainer: InDirectory) -> str:
    if trainer.of_program:
        return f"Trainer(..., run_dir={str(trainer.run_dir)!r}, resume=True)"
    model = trainer.config.model
    again = f" --model {printable(model.kind)}" if model.own else ""  # its code isn't run unasked
    return f"{launcher(trainer.comm.size)}hpcgnn train --resume {trainer.run_dir}{again}"


def check_failure(trainer: InDirectory, ended: bool = False) -> None:
    """Check that the required checkpoints were written; collective.

    Raises:
        OutputError: one could not be written.
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
                f"check its run directory; it stopped after epoch {trainer.epoch}",
                file=path,
            ) from None
