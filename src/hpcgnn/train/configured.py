"""Building a trainer from settings: model, task and optimizer of the command line."""

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
    """Return the trainer of a configuration, for a built-in or a user's model; collective.

    Args:
        resume: continue from the newest intact checkpoint, if there is one.
        stop: signals received so far and from now on; None: those that arrive during `run`.
        show: what is printed, see `Reporter`.
        display: shows the progress of training.
        callbacks: see `Callbacks`.

    Raises:
        InputError: graph and configuration, or a checkpoint to resume from, are incompatible.
    """
    if config.model.own and config.streaming.recompute:
        raise InputError(
            "--recompute is for built-in models: in your own model call "
            "hpcgnn.nn.recomputed(graph, layer, x)"
        )
    graph = configure(graph, config)
    check_training(config, facts_of(graph))
    task = find_task(graph, config.training.metric, config.task, config.training.seed)
    own = ModelFile.of(config.model) if config.model.own else None
    stored = own.stored() if own else {}
    # Before the model is built: a model with other settings may not fit the graph.
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
