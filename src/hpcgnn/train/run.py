"""A run: its settings, its directory with the checkpoints, and the one it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgnn.comm.agreement import require_same
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import OWN
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.resume import newest_of_run
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config, options
from hpcgnn.train.optimisation import prepare

# What a Python program says by settings; the rest it says by objects, or to `load_partition`.
_SECTIONS = ("optimiser", "training", "checkpoints")
_OTHERS = ("precision",)
_NOT = ("metric", "method", "adversarial_steps", "adversarial_size", "param_groups")


@dataclass(frozen=True)
class Run:
    """What a `Trainer` needs beside graph, model and task.

    Attributes:
        found: the checkpoint to go on from, and its file.
        model_file: what a checkpoint says of the file of a model of the user's.
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
        """Make the folder of checkpoints, and find the newest one to `resume`; collective.

        Raises:
            InputError: it is of another run.
        """
        store = CheckpointStore(directory / "checkpoints", graph.comm, config.checkpoints.keep)
        found = newest_of_run(store, graph, config) if resume else None
        return Run(directory, config, store, found, model_file or {})


def config_of_program(
    graph: PartitionedGraph, settings: Mapping[str, Any], *, optimizer: object, scheduler: object
) -> Config:
    """The configuration that a Python program's run is stored with; collective.

    Args:
        settings: by name, such as `epochs=50`.
        optimizer, scheduler: as given to `Trainer`.

    Raises:
        InputError: a setting is unknown, out of its limits, or not said here.
    """
    known = {
        name
        for name, place in options().items()
        if (place.section in _SECTIONS or name in _OTHERS) and name not in _NOT
    }
    for name in settings:
        if name not in known:
            raise InputError(f"Trainer has no setting {name}; there are {', '.join(sorted(known))}")
    values = {"seed": graph.seed, "mode": graph.mode} | dict(settings) | {"model": OWN}
    if optimizer is not None:
        if isinstance(optimizer, str):
            values["optimizer"] = optimizer
        else:
            values["optimizer"] = OWN
            if settings.keys() & {"schedule", "lr", "weight_decay", "step_size", "gamma"}:
                raise InputError(
                    "lr, weight_decay and schedule are for an optimizer given by name: say them to "
                    "yours, and give a scheduler"
                )
    if scheduler is not None:
        values["schedule"] = OWN
    config = Config.of(**values)
    require_same(graph.comm, config.flat(), "settings")
    if "precision" in settings:
        prepare(config.device.precision)
    return config
