"""The arguments of `Trainer`: checks, and the configuration that its settings give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.display import Display
from hpcgnn.errors import InputError, counted
from hpcgnn.graph.arguments import check_graph, check_module
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import OWN
from hpcgnn.settings import check_path
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config, options
from hpcgnn.train.optimisation import prepare
from hpcgnn.train.run import Run
from hpcgnn.train.stop import StopRequest
from hpcgnn.train.telemetry import SHOWN

# The settings of a Python program; it passes the others as objects, or to `load_partition`.
_SECTIONS = ("optimiser", "training", "checkpoints")
_OTHERS = ("precision", "keep_in")
_NOT = ("metric", "method", "adversarial_steps", "adversarial_size", "param_groups")


def check_given(graph: object, model: object, run_dir: object, losses: object) -> None:
    """Check the types of the main arguments of `Trainer`.

    Raises:
        InputError: an argument has another type or value.
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
    """Check the types of the optional arguments of `Trainer`.

    Raises:
        InputError: an argument has another type or value.
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


def check_start(store: CheckpointStore) -> None:
    """Raise InputError under `torch.no_grad` and `torch.inference_mode`, and for a second run."""
    if store.closed:
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
    """Yield what `losses` returned, one loss after the other.

    Raises:
        InputError: there is no loss, or it is not an iterable.
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


def check_counts(comm: Communicator, count: int, *, more: bool) -> None:
    """Check that all ranks, or none, have another loss after `count` losses. Collective.

    In the background: where ranks differ, one may wait here and others in a layer of a further
    loss, whose messages must not be mixed up with these.

    Raises:
        InputError: `losses` yielded different numbers of losses on the ranks.
    """
    more_P = np.zeros(comm.size, np.int64)
    more_P[comm.rank] = more
    comm.background().begin(more_P)
    place = (
        f"loss {count + 1}"
        if more
        else f"the end of losses(trainer, epoch), after {counted(count, 'loss')}"
    )
    (more_P,) = comm.background().finish(place)
    if 0 < more_P.sum() < comm.size:
        fewer, others = int(more_P.argmin()), int(more_P.argmax())
        error = InputError(
            f"losses(trainer, epoch) yielded {counted(count, 'loss')} on rank {fewer} and at least "
            f"{count + 1} on rank {others}: each rank must yield its share of every loss "
            "(0 * output.sum() if it has none)"
        )
        comm.agree(error, where="count the losses")


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
