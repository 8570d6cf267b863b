"""Predictions of a checkpoint for every node, in the order of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, printable, warn
from hpcgnn.graph.arguments import check_graph, check_module
from hpcgnn.graph.kinds import moved
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model, build_model
from hpcgnn.models.demands import (
    RELATION_READERS,
    WEIGHT_READERS,
    Content,
    check_model,
    content_of,
    facts_of,
    ignored_by,
    in_words,
)
from hpcgnn.models.settings import OWN as OWN_MODEL
from hpcgnn.settings import check_path
from hpcgnn.storage.schema import EARLIER_ROW, PREDICTIONS
from hpcgnn.storage.write.atomic import check_output_together
from hpcgnn.tasks.build import find_task
from hpcgnn.tasks.classes import MultiClass
from hpcgnn.tasks.pairs import ids_of_pairs
from hpcgnn.tasks.settings import LABELS
from hpcgnn.tasks.task import OWN, Task, TaskDefaults, as_task
from hpcgnn.train import prediction_file
from hpcgnn.train.calls import BuiltInCall, ModelCall
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.arrays import built_in_task
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.state import (
    check_stored,
    restore_model,
    restored_average,
    restored_rows,
)
from hpcgnn.train.checkpoint.store import best_or_last
from hpcgnn.train.config import Config
from hpcgnn.train.label_propagation import check_known_labels, class_rows, smoothed
from hpcgnn.train.layer_rehearsal import rehearse_layers
from hpcgnn.train.learned import OF_TASK, Learned
from hpcgnn.train.matched_rows import matched_rows
from hpcgnn.train.optimisation import configure
from hpcgnn.train.own_model import ModelFile
from hpcgnn.train.prediction import Prediction, node_ids, scored
from hpcgnn.train.prediction_writing import write_predictions
from hpcgnn.train.user_names import FindNodeIds, encoding_of, node_texts, read_pairs


def read_checkpoint(place: Path, comm: Communicator) -> tuple[Path, Checkpoint]:
    """Return a checkpoint without sharded rows, and its file; read by rank 0; collective.

    Args:
        place: its file, or a run directory: the best checkpoint, or the last if there is no best.

    Raises:
        InputError: it is missing, damaged, or not a checkpoint.
    """
    found: tuple[Path, Checkpoint] | None = None
    with agreed(comm, "read the checkpoint"):
        if comm.rank == 0:
            path = best_or_last(place)
            found = path, files.read(path)
    whole: tuple[Path, Checkpoint] = comm.broadcast(found, where="checkpoint")
    return whole


class Predictor:
    """A checkpoint's model applied to one partitioned graph.

    Args:
        path: the file that `checkpoint` was read from.
        any_graph: accept a checkpoint of another graph, not only of that which this one was read
            like.
        model: the trained module, if it was made by a Python program; on the command line it is
            that of `model_file`.
        model_file: the file of a user's model; without it, no such file is run.
        model_args: its arguments; None: those in the checkpoint.
        task: the task, if the checkpoint has only its name; without, `output` is predicted.

    Raises:
        InputError: the checkpoint is of another graph or model, or the model's file has changed.
    """

    def __init__(
        self,
        graph: PartitionedGraph,
        checkpoint: Checkpoint,
        path: Path,
        *,
        any_graph: bool = False,
        model: torch.nn.Module | None = None,
        model_file: str = "",
        model_args: str | None = None,
        task: Any = None,
    ) -> None:
        self.checkpoint, config = checkpoint, checkpoint.config
        by_id = _compare_graphs(graph, checkpoint, path, any_graph=any_graph)
        matched = matched_rows(path, graph) if by_id and checkpoint.rows else None
        self.graph = graph = configure(graph, config)
        self.task = _task(graph, checkpoint, path) if task is None else as_task(task)
        self.graph = graph = self.task.prepare(graph)
        self.device = graph.node_ids.device
        if model is None and config.model.own:
            model = _own_model(graph, checkpoint, path, model_file, model_args)
        elif model_file or model_args is not None:
            option = "--model" if model_file else "--model-args"
            raise InputError(f"{option} is for a checkpoint of a model of your own", file=path)
        if model is None:
            model = self._built_in(config, path)
        self.model = model.to(self.device)
        learned = Learned(self.model, self.task.module)
        with agreed(graph.ring.comm, "restore the checkpoint"), torch.no_grad():
            sharded = restored_rows(learned, checkpoint, graph, path, matched)
            restore_model(learned, _of(learned, checkpoint), sharded, path)
            averages = restored_average(learned, checkpoint, sharded, path)
            for name, parameter in learned.named_parameters():
                if name in averages:
                    parameter.copy_(averages[name])
        learned.train(False)
        if isinstance(self.model, Model):
            nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
            self.call: ModelCall = BuiltInCall(self.model, graph, config, nothing)
        else:
            self.call = ModelCall(self.model, graph, config.device.precision)
            rehearse_layers(self.model, graph, config.device.precision, trains=False)

    def _built_in(self, config: Config, path: Path) -> Model:
        graph = self.graph
        outputs, seed = self.task.num_outputs, config.training.seed
        if outputs is None:
            raise InputError("its task is not one of a built-in model", file=path)
        if config.model.labels_as_input:
            check_known_labels(graph, outputs, "a model trained with --labels-as-input")
        check_model(config.model, facts_of(graph))
        with torch.device("meta"):
            shapes = build_model(config.model, graph, outputs, seed)
        with agreed(graph.ring.comm, "fit the checkpoint"):
            check_stored(shapes, self.checkpoint, path)
        return build_model(config.model, graph, outputs, seed)

    @torch.no_grad()
    def run(
        self, *, embeddings: bool = False, smooth: bool = False, pairs: Path | None = None
    ) -> Prediction:
        """Predict every node; collective.

        Args:
            embeddings: also return the input of the last layer.
            pairs: a file of node pairs to predict, if the task is of pairs; None: the task's own.
            smooth: apply Correct & Smooth, which reads the labels of training nodes.

        Raises:
            InputError: the model or the labels don't allow what is asked for.
            NumericalError: no prediction is finite.
        """
        graph, model = self.graph, self.model
        one_class = isinstance(self.task, MultiClass) and self.task.target == LABELS
        if smooth and not one_class:
            raise InputError("--correct-and-smooth needs labels with one class per node")
        if smooth:
            check_known_labels(graph, self.task.num_outputs, "--correct-and-smooth")
        scores = self.call.output().float()
        if len(scores) != graph.num_local_nodes:
            raise InputError(
                f"the model returns {len(scores)} rows for {graph.num_local_nodes} nodes: only one "
                "row per node can be written"
            )
        if smooth:
            scores = smoothed(graph, scores)
            rows = class_rows(scores)
        elif (found := self._of_pairs(scores, pairs)) is not None:
            if embeddings:
                raise InputError(
                    "--embeddings needs a task on nodes, and this one is on pairs of nodes"
                )
            return found
        else:
            rows = self.task.predictions(scores)
        if embeddings:
            embed: Any = getattr(model, "embed", None)
            if embed is None:
                raise InputError("--embeddings: the model has no method embed(graph)")
            hidden = embed(graph)
            if not isinstance(hidden, torch.Tensor):
                raise InputError("a model of one layer has no embeddings; train with more --layers")
            rows["embeddings"] = hidden.float().cpu().numpy()
        return scored(graph, self.task, node_ids(graph) | rows, scores)

    def _of_pairs(self, scores: Tensor, file: Path | None) -> Prediction | None:
        """Return the predictions for pairs of nodes; None if the task is of nodes."""
        chosen = None if file is None else read_pairs(file, self.graph)
        found = self.task.pairs(self.graph, scores, chosen)
        if found is None:
            if file is not None:
                raise InputError("--pairs needs a task on edges or links, and this one is on nodes")
            return None
        ids = ids_of_pairs(self.graph, found.pairs, self.graph.derived(FindNodeIds()))
        return scored(self.graph, self.task, ids | found.rows, scores, found.pairs.number)


def predict(
    graph: PartitionedGraph,
    checkpoint: str | Path,
    model: torch.nn.Module | None = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    any_graph: bool = False,
    force: bool = False,
    embeddings: bool = False,
) -> Prediction:
    """Apply a checkpoint to every node, in a Python program; collective.

    Args:
        graph: this rank's part.
        checkpoint: its file, or a run directory: the best one there, or the last without a best.
        model: the trained module, which takes the checkpoint's weights; not needed for a built-in
            model.
        task: the program's task, which turns the output into predictions and scores them.
        out: OUT.h5, OUT.parquet, OUT.csv or OUT.npz, in the original order of the nodes; None:
            not written.
        any_graph: accept a checkpoint of another graph, not only of that which this one was read
            like.
        force: replace former predictions.
        embeddings: add the array `embeddings`: the input of a built-in model's last layer, or what
            the method `embed(graph)` of a model of your own returns, `[local nodes, any]`.

    Raises:
        InputError: the checkpoint is of another graph or model, or can't be read; `out` exists; the
            model has no embeddings.
        OutputError: `out` can't be written.
    """
    check_graph(graph, "predict")
    check_path(checkpoint, "predict", "checkpoint")
    if model is not None:
        check_module(model, "predict")
    comm = graph.comm
    if out is not None:
        check_path(out, "predict", "out")
        prediction_file.check_ending(Path(out))
        check_output_together(
            comm,
            Path(out),
            PREDICTIONS,
            force=force,
            inputs=[checkpoint],
            read_format=prediction_file.format_of,
        )
    path, found = read_checkpoint(Path(checkpoint), comm)
    predictor = Predictor(graph, found, path, any_graph=any_graph, model=model, task=task)
    result = predictor.run(embeddings=embeddings)
    if out is not None:
        attributes: dict[str, int | str | dict] = {
            "config": found.config.to_json(),
            "checkpoint": printable(path.name),
            "epoch": found.epoch,
            "not_finite": result.not_finite,
        }
        with agreed(comm, "read the names of the classes"):
            texts = None
            if comm.rank == 0:
                trained_on = found.graph_fingerprint
                texts = node_texts(graph, None, named_by=result.named_by, trained_on=trained_on)
        write_predictions(Path(out), graph, result.rows, attributes, texts, result.numbers)
    return result


def _compare_graphs(
    graph: PartitionedGraph, checkpoint: Checkpoint, path: Path, *, any_graph: bool
) -> bool:
    """Return whether learned rows are found by the nodes' ids; else by their numbers. Collective.

    Raises:
        InputError: it is another graph than that trained on, and was not read like it.
    """
    trained_on = checkpoint.graph_fingerprint
    if trained_on == graph.graph_fingerprint:
        return False
    alike = trained_on != "" and trained_on == _read_like(graph)
    by_id = alike and EARLIER_ROW in graph.nodes
    if not any_graph and (not alike or (checkpoint.rows and not by_id)):
        how = ", its learned embeddings by the numbers of the nodes" if checkpoint.rows else ""
        raise InputError(
            f"was trained on another graph ({trained_on}, not {graph.graph_fingerprint}); "
            f"--any-graph applies it anyway{how}",
            file=path,
        )
    _compare_kinds(graph, checkpoint, path)
    if checkpoint.rows and not by_id:
        _say_rows(graph)
    return by_id


def _read_like(graph: PartitionedGraph) -> str:
    """Return the fingerprint of the graph that this one was read like, or "". Collective."""
    like = ""
    with agreed(graph.comm, "compare the graphs"):
        if graph.comm.rank == 0 and graph.file is not None:
            encoding = encoding_of(graph.file, graph)
            like = "" if encoding is None else encoding.like
    found: str = graph.comm.broadcast(like, where="compare the graphs")
    return found


def _compare_kinds(graph: PartitionedGraph, checkpoint: Checkpoint, path: Path) -> None:
    """Check that the types and relations that the model reads have its graph's numbers. Collective.

    A note names the data of this graph that the model does not read.

    Raises:
        InputError: one has another number.
    """
    settings, there = checkpoint.config.model, content_of(graph)
    unused = [] if settings.own else there.unused(settings)
    if unused and graph.comm.rank == 0:
        left = in_words(unused)
        warn(f"hpcgnn: note: the model ({settings.kind}) does not use {left} of this graph")
    _say_weights(checkpoint, there, graph)
    reads = {
        "node type": there.typed_features and not settings.own,
        "relation": settings.kind in RELATION_READERS and not settings.own,
    }
    trained, found = checkpoint.kinds, graph.kinds
    names = {
        "node type": (graph.num_types, trained.node_types, found.node_types),
        "relation": (graph.num_relations, trained.relations, found.relations),
    }
    with agreed(graph.comm, "compare the graphs"):
        if graph.comm.rank != 0:
            return
        for what, (number, before, now) in names.items():
            if number < 2 or (before == now and now):
                continue
            changed = moved(before, now)
            if changed is None or not reads[what]:
                _say_numbered(what, before, now)
                continue
            name, old, new = changed
            raise InputError(
                f"knows {what} {old} as ({name}), which is number {new} in this graph, and matches "
                "by number: convert the graph with the same ones, in the same order",
                file=path,
            )


def _say_weights(checkpoint: Checkpoint, there: Content, graph: PartitionedGraph) -> None:
    """Note that one graph has edge weights and the other has not, if the model reads them."""
    settings, trained = checkpoint.config.model, checkpoint.weighted
    if trained in (None, there.weights) or graph.comm.rank != 0:
        return
    if settings.own or (settings.kind in WEIGHT_READERS and "weights" not in ignored_by(settings)):
        has = "has edge weights, the graph trained on had none"
        lacks = "has no edge weights, the graph trained on had some"
        warn(f"hpcgnn: note: this graph {has if there.weights else lacks}")


def _say_rows(graph: PartitionedGraph) -> None:
    if graph.comm.rank == 0:
        warn(
            "hpcgnn: note: learned embeddings are matched by the numbers of the nodes: this graph "
            "must have the nodes of the training graph, in the same order"
        )


def _say_numbered(what: str, trained: Sequence[str], found: Sequence[str]) -> None:
    pairs = zip(trained, found, strict=False)
    differing = [f"; {what} {k} was ({a}), is ({b})" for k, (a, b) in enumerate(pairs) if a != b]
    warn(
        f"hpcgnn: note: {what}s are matched by number: this graph must have been converted with "
        f"the same ones, in the same order{printable(''.join(differing[:1]))}"
    )


class _Unknown(TaskDefaults):
    """A task that only its program knows: nothing is scored, and the output itself is written."""

    def __init__(self, metric: str) -> None:
        self.metric, self.larger_is_better = metric, True

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        return torch.zeros(0, dtype=torch.int64, device=graph.node_ids.device)

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        raise InputError("only the program that trained the model knows its task")

    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        return {self.metric: math.nan}


def _task(graph: PartitionedGraph, checkpoint: Checkpoint, path: Path) -> Task:
    known = checkpoint.task
    if known.get("kind") == OWN:
        return _Unknown(str(known.get("metric"))[:80])
    # Older checkpoints don't store their task; it follows from the graph they were trained on.
    if known:
        return built_in_task(known, checkpoint.arrays, path)
    config = checkpoint.config
    return find_task(graph, config.training.metric, config.task, config.training.seed)


def _own_model(
    graph: PartitionedGraph,
    checkpoint: Checkpoint,
    path: Path,
    model_file: str,
    model_args: str | None,
) -> torch.nn.Module:
    """Return the model of the user's file, which must be the one it was trained with; collective.

    The file named in a checkpoint is not run unasked, since the author of the checkpoint may have
    put it there.
    """
    settings = checkpoint.config.model
    with agreed(graph.comm, "the file of the model"):
        if not model_file and settings.kind != OWN_MODEL:
            raise InputError(
                "was trained with a model of your own, and code that a checkpoint names isn't run "
                f"unless you ask for it: add --model {printable(settings.kind)[:200]}, or in "
                "Python model=...",
                file=path,
            )
        if not model_file:
            raise InputError(
                "was trained by a Python program: predict there, with hpcgnn.predict(graph, run, "
                "model), or name a file that makes its model, --model FILE.py:NAME",
                file=path,
            )
        file = ModelFile.of(replace(settings, kind=model_file or settings.kind))
        changed = file.differs(checkpoint.model_file) if checkpoint.model_file else ""
        if changed:
            raise InputError(f"{changed}: restore that file", file=path)
    arguments = settings.model_args if model_args is None else model_args
    return file.build(graph, arguments, checkpoint.config.training.seed)


def _of(learned: Learned, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without the parameters of a task's module, if there is no module."""
    if len(learned.modules) > 1:
        return checkpoint
    mine = {n: a for n, a in checkpoint.arrays.items() if not n.startswith(f"model/{OF_TASK}")}
    return replace(checkpoint, arrays=mine)
