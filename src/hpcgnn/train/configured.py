"""From settings to a trainer: model, task and optimizer of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcgnn.display import SILENT, Display
from hpcgnn.errors import InputError, warning
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import build_model
from hpcgnn.models.demands import facts_of
from hpcgnn.tasks.build import find_task
from hpcgnn.train.config import Config
from hpcgnn.train.open import check_training
from hpcgnn.train.optimisation import configure
from hpcgnn.train.own_model import ModelFile
from hpcgnn.train.run import Run
from hpcgnn.train.stop import StopRequest
from hpcgnn.train.trainer import Trainer


def configured_trainer(
    graph: PartitionedGraph,
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    stop: StopRequest | None = None,
    show: str = "lines",
    display: Display = SILENT,
    callbacks: Sequence[Any] = (),
) -> Trainer:
    """The trainer of a configuration, for a built-in model or one of the user's; collective.

    Args:
        resume: go on from the newest whole checkpoint, if there is one.
        stop: signals heard so far and from now on; None: those that arrive during `run`.
        show: what is printed, see `Reporter`.
        display: what shows how far training is.
        callbacks: see `Callbacks`.

    Raises:
        InputError: the graph and the configuration, or a checkpoint to resume, don't fit together.
    """
    if config.model.own and config.streaming.recompute:
        raise InputError(
            "--recompute is for built-in models: in yours call "
            "hpcgnn.nn.recomputed(graph, layer, x)"
        )
    graph = configure(graph, config)
    check_training(config, facts_of(graph))
    task = find_task(graph, config.training.metric, config.task, config.training.seed)
    own = ModelFile.of(config.model) if config.model.own else None
    stored = own.stored() if own else {}
    # Before the model is built: one of other settings may not even fit the graph.
    run = Run.open(run_dir, graph, config, resume=resume, model_file=stored)
    seed = config.training.seed
    how: dict[str, Any] = {
        "resume": resume,
        "stop": stop,
        "show": show,
        "display": display,
        "callbacks": callbacks,
    }
    if own is None:
        model = build_model(config.model, graph, task.num_outputs, seed)
        return Trainer(graph, model, task, opened=run, **how)
    if run.found is not None and graph.comm.rank == 0:
        path, checkpoint = run.found
        if changed := own.differs(checkpoint.model_file):
            warning(f"{path}: {changed}")
    users = own.build(graph, config.model.model_args, seed)
    return Trainer(graph, users, task, opened=run, **how)
