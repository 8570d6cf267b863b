"""A run: its settings, its directory, where it starts or resumes, and how it ends."""

from __future__ import annotations

import json
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed, require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.launcher import launcher
from hpcgnn.display import Display, Stage
from hpcgnn.errors import InputError, OutputError
from hpcgnn.graph.arguments import check_graph, check_module
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import OWN
from hpcgnn.settings import check_path
from hpcgnn.storage.read.partition_file import PartitionFile
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import PARTITION
from hpcgnn.system import asked_threads, now
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.resume import newest_of_run
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config, options
from hpcgnn.train.journal import Journal, check_regular, json_lines
from hpcgnn.train.optimisation import prepare
from hpcgnn.train.run_directory import ENDED, REQUEUE, note_end
from hpcgnn.train.scores import Monitor, Progress
from hpcgnn.train.stop import StopRequest
from hpcgnn.train.telemetry import SHOWN, Reporter
from hpcgnn.version import __version__

_PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "cupy-cuda12x", "cupy-cuda13x")
_MOST_HOSTS = 64  # listed one by one
NO_VALIDATION = "no validation node has a label to score"
# The settings of a Python program; it passes the others as objects, or to `load_partition`.
_SECTIONS = ("optimiser", "training", "checkpoints")
_OTHERS = ("precision", "keep_in")
_NOT = ("metric", "method", "adversarial_steps", "adversarial_size", "param_groups")


def check_given(graph: object, model: object, run_dir: object, losses: object) -> None:
    """What `Trainer` is given.

    Raises:
        InputError: one of them is something else.
    """
    check_graph(graph, "Trainer")
    check_module(model, "Trainer")
    check_path(run_dir, "Trainer", "run_dir")
    if losses is not None and not callable(losses):
        raise InputError(
            "Trainer: losses must be a function of (trainer, epoch)", value=type(losses).__name__
        )


def check_options(
    *, resume: object, stop: object, show: object, display: object, opened: object
) -> None:
    """The other arguments of `Trainer` that have a type of their own.

    Raises:
        InputError: one of them is something else.
    """
    for name, given, right, words in (
        ("resume", resume, isinstance(resume, bool), "True or False"),
        ("stop", stop, stop is None or isinstance(stop, StopRequest), "a StopRequest or None"),
        ("show", show, isinstance(show, str) and show in SHOWN, f"one of {', '.join(SHOWN)}"),
        ("display", display, isinstance(display, Display), "a Display"),
        ("opened", opened, opened is None or isinstance(opened, Run), "a Run or None"),
    ):
        if not right:
            value = given if isinstance(given, str) else type(given).__name__
            raise InputError(f"Trainer: {name} must be {words}", value=value)


def check_start(trainer: InDirectory) -> None:
    """Raise InputError under `torch.no_grad` and `torch.inference_mode`, and for a second run."""
    if trainer.store.closed:
        raise InputError(
            "this Trainer has already run: to continue, make another with the same run_dir, "
            "resume=True and more epochs"
        )
    if not torch.is_grad_enabled():
        raise InputError(
            "training was called under torch.no_grad or torch.inference_mode, which switch "
            "gradients off: call it outside"
        )


def shares_of(given: Any) -> Iterator[Any]:
    """What `losses` yields, one after the other.

    Raises:
        InputError: it yields nothing, or returns something else.
    """
    if not isinstance(given, Iterable) or isinstance(given, Tensor):
        raise InputError(
            "losses(trainer, epoch) must yield this rank's share of each loss in turn",
            value=type(given).__name__,
        )
    count = 0
    for count, share in enumerate(given, 1):  # noqa: B007
        yield share
    if not count:
        raise InputError("losses(trainer, epoch) yielded no loss")


def note_start(
    run_dir: Path,
    graph: PartitionedGraph,
    *,
    from_epoch: int,
    source: Path | None = None,
    parts: Path | None = None,
) -> None:
    """Append a line about this start to starts.jsonl; collective.

    Args:
        from_epoch: number of epochs trained by earlier starts.
        source: the graph or partition file that was asked for.
        parts: the file that the parts were loaded from.

    Raises:
        OutputError: the line can't be written.
        InputError: the file's name is taken by something that is not a file.
    """
    comm = graph.comm
    hosts = Counter(comm.allgather(socket.gethostname(), where="hosts"))
    path = run_dir / "starts.jsonl"
    with agreed(comm, "starts.jsonl"):
        if comm.rank != 0:
            return
        line = {
            "time": now(),
            "from_epoch": from_epoch,
            "ranks": comm.size,
            "threads": asked_threads(),
            "hosts": dict(list(hosts.items())[:_MOST_HOSTS]),
            "device": str(graph.node_ids.device),
            "transport": graph.ring.transport.name,
            "releases": _releases(),
            "system": platform.platform(),
            "graph": {
                "fingerprint": graph.graph_fingerprint,
                "nodes": graph.num_nodes,
                "edges": graph.num_edges,
                **({} if source is None else {"file": str(source)}),
            },
            "partition": {} if parts is None else _quality(parts),
        }
        try:
            check_regular(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"can't be written: {error.strerror}", file=path) from None


def last_source(run_dir: Path) -> Path:
    """Return the graph or partition file of the latest start.

    Raises:
        InputError: no start names one.
    """
    path, found = run_dir / "starts.jsonl", ""
    with suppress(FileNotFoundError):
        for line in json_lines(path):
            entries = [(line or {}).get(name) for name in ("partition", "graph")]
            files = [entry.get("file") for entry in entries if isinstance(entry, dict)]
            found = next((file for file in reversed(files) if isinstance(file, str)), found)
    if not found:
        raise InputError(
            "doesn't record the graph it was trained on: name the graph or partition file",
            file=run_dir,
        )
    return Path(found)


def _releases() -> dict[str, str]:
    found = {name: release for name in _PACKAGES if (release := _release_of(name)) is not None}
    return {"hpcgnn": __version__, "python": platform.python_version(), **found}


@cache
def _release_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _quality(path: Path) -> dict[str, Any]:
    """Return the quality of a partition file; empty for a graph file."""
    with Reader(path, None) as reader:
        if reader.text("format") != PARTITION:
            return {}
    with PartitionFile(path) as file:
        header = file.header
        return {"file": str(path), "method": header["method"], **header["report"]}


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
    return f"{launcher(trainer.comm.size)}hpcgnn train --resume {trainer.run_dir}"


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


@dataclass(frozen=True)
class Run:
    """The parts of a `Trainer` besides graph, model and task.

    Attributes:
        found: the checkpoint to resume from, with its file.
        model_file: entry in checkpoints about the file of a user's model.
    """

    directory: Path
    config: Config
    store: CheckpointStore
    found: tuple[Path, Checkpoint] | None
    model_file: dict[str, Any]

    @staticmethod
    def open(
        directory: Path,
        graph: PartitionedGraph,
        config: Config,
        *,
        resume: bool,
        model_file: dict[str, Any] | None = None,
    ) -> Run:
        """Make the checkpoint folder, and find the newest checkpoint to `resume` from; collective.

        Raises:
            InputError: the checkpoint is of another run.
        """
        store = CheckpointStore(directory / "checkpoints", graph.comm, config.checkpoints.keep)
        found = newest_of_run(store, graph, config) if resume else None
        return Run(directory, config, store, found, model_file or {})


def config_of_program(
    graph: PartitionedGraph, settings: Mapping[str, Any], *, optimizer: object, scheduler: object
) -> Config:
    """Return the configuration stored with the run of a Python program; collective.

    Args:
        settings: by name, such as `epochs=50`.
        optimizer, scheduler: as given to `Trainer`.

    Raises:
        InputError: a setting is unknown, out of its limits, or not one of `Trainer`.
    """
    known = {
        name
        for name, place in options().items()
        if (place.section in _SECTIONS or name in _OTHERS) and name not in _NOT
    }
    for name in settings:
        if name not in known:
            raise InputError(
                f"Trainer has no setting {name}; its settings are {', '.join(sorted(known))}"
            )
    values = {"seed": graph.seed, "mode": graph.mode} | dict(settings) | {"model": OWN}
    if optimizer is not None:
        if isinstance(optimizer, str):
            values["optimizer"] = optimizer
        else:
            values["optimizer"] = OWN
            if settings.keys() & {"schedule", "lr", "weight_decay", "step_size", "gamma"}:
                raise InputError(
                    "lr, weight_decay and schedule are for an optimizer given by name: set them in "
                    "your own optimizer, and pass a scheduler"
                )
    if scheduler is not None:
        values["schedule"] = OWN
    config = Config.of(**values)
    require_same(graph.comm, config.flat(), "settings")
    if "precision" in settings:
        prepare(config.device.precision)
    return config
