"""Predictions of a checkpoint for every node, in the order of the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, NumericalError, printable
from hpcgnn.graph.arguments import check_graph, check_module
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model, build_model
from hpcgnn.models.demands import check_model, facts_of
from hpcgnn.models.settings import OWN as OWN_MODEL
from hpcgnn.models.smoothing import correct_and_smooth, label_propagation
from hpcgnn.settings import check_path
from hpcgnn.storage.schema import PREDICTIONS
from hpcgnn.storage.write.atomic import check_output_together
from hpcgnn.tasks.build import find_task
from hpcgnn.tasks.classes import MultiClass
from hpcgnn.tasks.edges import EdgeTask
from hpcgnn.tasks.pairs import ids_of_pairs
from hpcgnn.tasks.settings import LABELS, shown
from hpcgnn.tasks.task import OWN, SPLITS, Task, TaskDefaults, as_task
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
from hpcgnn.train.learned import OF_TASK, Learned
from hpcgnn.train.optimisation import configure
from hpcgnn.train.own_model import ModelFile
from hpcgnn.train.prediction_writing import write_predictions
from hpcgnn.train.user_names import FindNodeIds, node_texts, read_pairs


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
        any_graph: accept a checkpoint of another graph.
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
        same = self.checkpoint.graph_fingerprint == graph.graph_fingerprint
        if not same and not any_graph:
            raise InputError(
                f"was trained on another graph ({self.checkpoint.graph_fingerprint}, not "
                f"{graph.graph_fingerprint}); --any-graph applies it anyway",
                file=path,
            )
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
            sharded = restored_rows(learned, checkpoint, graph, path)
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

    def _built_in(self, config: Config, path: Path) -> Model:
        graph = self.graph
        outputs, seed = self.task.num_outputs, config.training.seed
        if outputs is None:
            raise InputError("its task is not one of a built-in model", file=path)
        if config.model.labels_as_input:
            _check_known_labels(graph, outputs, "a model trained with --labels-as-input")
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
            _check_known_labels(graph, self.task.num_outputs, "--correct-and-smooth")
        scores = self.call.output().float()
        if len(scores) != graph.num_local_nodes:
            raise InputError(
                f"the model returns {len(scores)} rows for {graph.num_local_nodes} nodes: only one "
                "row per node can be written"
            )
        if smooth:
            _say_directed(graph)
            scores = correct_and_smooth(graph, torch.softmax(scores, dim=-1), _train_mask(graph))
            rows = _classes(scores := _shares(scores))
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
        return _prediction(graph, self.task, node_ids(graph) | rows, scores)

    def _of_pairs(self, scores: Tensor, file: Path | None) -> Prediction | None:
        """Return the predictions for pairs of nodes; None if the task is of nodes."""
        chosen = None if file is None else read_pairs(file, self.graph)
        found = self.task.pairs(self.graph, scores, chosen)
        if found is None:
            if file is not None:
                raise InputError("--pairs needs a task on edges or links, and this one is on nodes")
            return None
        ids = ids_of_pairs(self.graph, found.pairs, self.graph.derived(FindNodeIds()))
        return _prediction(self.graph, self.task, ids | found.rows, scores, found.pairs.number)


def predict(
    graph: PartitionedGraph,
    checkpoint: str | Path,
    model: torch.nn.Module | None = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    any_graph: bool = False,
    force: bool = False,
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
        any_graph: accept a checkpoint of another graph.
        force: replace former predictions.

    Raises:
        InputError: the checkpoint is of another graph or model, or can't be read; `out` exists.
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
    result = Predictor(graph, found, path, any_graph=any_graph, model=model, task=task).run()
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


@dataclass(frozen=True, repr=False)
class Prediction:
    """This rank's rows, and the metric over the train, valid and test nodes of all ranks.

    `rows` holds `original_ids` `[n]`, UTF-8 bytes if nodes have names; `probabilities` `[n, C]` and
    `classes` `[n]` (or 0/1 `[n, C]` for several labels), or `values` `[n]` or `[n, W]`; and,
    if asked for, `embeddings` `[n, hidden]`. For edges and pairs of nodes it holds `source_ids` and
    `target_ids` instead of `original_ids`. `not_finite` is the number of nodes (or pairs) over all
    ranks with a value in their rows that is not finite, `first_not_finite` the row of the first in
    the output.

    Attributes:
        numbers: int64, position of each of this rank's rows in the output.
        count: number of rows of all ranks.
        what: `nodes` or `pairs`.
        named_by: `nodes` or `edges`, whose label names are the classes' names; empty: neither.
    """

    rows: dict[str, np.ndarray]
    metric: str
    scores: dict[str, float]
    numbers: np.ndarray
    count: int
    what: str = "nodes"
    named_by: str = "nodes"
    not_finite: int = 0
    first_not_finite: int = -1

    def __repr__(self) -> str:
        """Return one line on the rows of this rank and the scores of all."""
        scores = [f"{split} {shown(self.metric, score)}" for split, score in self.scores.items()]
        arrays = [f"{name} {list(array.shape)}" for name, array in self.rows.items()]
        return (
            f"Prediction({len(self.numbers):,} of {self.count:,} {self.what}; "
            f"{self.metric}: {', '.join(scores) or 'not known'}; rows: {', '.join(arrays)})"
        )


def predict_from_labels(graph: PartitionedGraph) -> Prediction:
    """Return label propagation from the training nodes, without a model; collective.

    Raises:
        InputError: the graph has no training labels, or several labels per node.
        NumericalError: no prediction is finite.
    """
    task = find_task(graph, "auto")
    if not isinstance(task, MultiClass):
        raise InputError("--label-propagation needs one class per node")
    _say_directed(graph)
    soft_NC = _shares(label_propagation(graph, _train_mask(graph), task.num_outputs))
    return _prediction(graph, task, node_ids(graph) | _classes(soft_NC), soft_NC)


def node_ids(graph: PartitionedGraph) -> dict[str, np.ndarray]:
    """Return the user's ids of the nodes, the first column of their predictions; collective."""
    return {"original_ids": graph.derived(FindNodeIds())}


def _classes(soft_NC: Tensor) -> dict[str, np.ndarray]:
    return {
        "probabilities": soft_NC.cpu().numpy(),
        "classes": soft_NC.argmax(dim=-1).cpu().numpy(),
    }


def _prediction(
    graph: PartitionedGraph,
    task: Task,
    rows: dict[str, np.ndarray],
    scores_NC: Tensor,
    numbers: np.ndarray | None = None,
) -> Prediction:
    """Return the rows, with scores of all nodes' outputs; `numbers` is of pairs, None for nodes."""
    scores = {}
    for split in SPLITS:
        targets = task.targets(graph, split)
        score = task.metrics(graph, scores_NC[targets], targets, split)[task.metric]
        if math.isfinite(score):
            scores[split] = score
    what = "nodes" if numbers is None else "pairs"
    numbers = graph.node_ids.cpu().numpy() if numbers is None else numbers
    total = graph.comm.allreduce(len(numbers), where="check the predictions")
    count, first = _not_finite(graph, rows, numbers)
    if not total:
        raise InputError("there are no pairs of nodes to predict")
    if count == total:
        raise NumericalError(
            f"no {what[:-1]} has a finite prediction: the model or its input is not finite"
        )
    named_by = "edges" if isinstance(task, EdgeTask) else ""
    if what == "nodes" and getattr(task, "target", None) == LABELS:
        named_by = what
    return Prediction(rows, task.metric, scores, numbers, total, what, named_by, count, first)


def _not_finite(
    graph: PartitionedGraph, rows: dict[str, np.ndarray], ids: np.ndarray
) -> tuple[int, int]:
    """Return the number of rows, over all ranks, that aren't finite, and the first; collective."""
    comm = graph.comm
    bad = np.zeros(len(ids), bool)
    for array in rows.values():
        if array.dtype.kind == "f":
            bad |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    count = comm.allreduce(int(bad.sum()), where="check the predictions")
    lowest = int(ids[bad].min()) if bad.any() else 1 << 62
    return count, comm.allreduce(lowest, "min", where="check the predictions")


def _check_known_labels(graph: PartitionedGraph, num_classes: int | None, reader: str) -> None:
    """Check that training nodes have labels, of classes that the model knows; collective.

    Raises:
        InputError: there are no labels, or one is of another class.
    """
    most = count = -1
    if graph.labels is not None and graph.train_mask is not None and graph.labels.dim() == 1:
        known = graph.labels[graph.train_mask & (graph.labels >= 0)]
        count, most = len(known), int(known.max()) if len(known) else -1
    count, most = graph.ring.comm.allreduce(np.array([count, most]), "max", where="known labels")
    if count <= 0:
        raise InputError(f"{reader} reads the labels of training nodes, but this graph has none")
    if num_classes is not None and most >= num_classes:
        raise InputError(
            f"{reader} reads the labels of training nodes, which must be classes of the model: "
            f"0 .. {num_classes - 1}",
            value=int(most),
        )


def _say_directed(graph: PartitionedGraph) -> None:
    if graph.ring.comm.rank == 0 and not graph.symmetric:
        print(
            "note: the graph is directed: labels spread only along its edges; convert --symmetrise "
            "makes it undirected",
            flush=True,
        )


def _train_mask(graph: PartitionedGraph) -> Tensor:
    if graph.train_mask is None:
        raise InputError("the graph has no split and therefore no training labels")
    return graph.train_mask


def _shares(scores_NC: Tensor) -> Tensor:
    """Return rows divided by their sums; equal shares if the sum is at most 0, nan if it is nan."""
    sums_N1 = scores_NC.sum(dim=1, keepdim=True)
    unknown_N1 = sums_N1 <= 0
    shares_NC = scores_NC / torch.where(unknown_N1, 1.0, sums_N1)
    return torch.where(unknown_N1, 1 / scores_NC.shape[1], shares_NC)
