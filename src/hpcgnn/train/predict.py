"""Predictions of a checkpoint for every node, in the order of the graph."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, NumericalError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model, build_model
from hpcgnn.models.demands import check_model, facts_of
from hpcgnn.models.smoothing import correct_and_smooth, label_propagation
from hpcgnn.nn.embedding import is_sharded
from hpcgnn.tasks.build import BuiltInTask, find_task, stored_task
from hpcgnn.tasks.classes import MultiClass
from hpcgnn.tasks.task import SPLITS, Task
from hpcgnn.train import prediction_file
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.state import check_stored, restore_model
from hpcgnn.train.checkpoint.writing import best_or_last
from hpcgnn.train.config import Config
from hpcgnn.train.optimisation import arithmetic, configure
from hpcgnn.train.prediction_file import PredictionFile

SLAB_BYTES = 64 << 20


def read_checkpoint(place: Path, comm: Communicator) -> tuple[Path, Checkpoint]:
    """A checkpoint without sharded rows, and its file; read by rank 0; collective.

    Args:
        place: its file, or a run directory: the best checkpoint, or the last without one.

    Raises:
        InputError: missing, damaged, or no checkpoint.
    """
    found: tuple[Path, Checkpoint] | None = None
    with agreed(comm, "read the checkpoint"):
        if comm.rank == 0:
            path = best_or_last(place)
            found = path, files.read(path)
    whole: tuple[Path, Checkpoint] = comm.broadcast(found, where="checkpoint")
    return whole


class Predictor:
    """A checkpoint's model on one partitioned graph.

    Args:
        path: the file that `checkpoint` was read from.

    Raises:
        InputError: the checkpoint is of another graph or model.
    """

    def __init__(
        self,
        graph: PartitionedGraph,
        checkpoint: Checkpoint,
        path: Path,
        *,
        any_graph: bool = False,
    ) -> None:
        self.checkpoint, config = checkpoint, checkpoint.config
        same = self.checkpoint.graph_fingerprint == graph.graph_fingerprint
        if not same and not any_graph:
            raise InputError(
                f"was trained on another graph ({self.checkpoint.graph_fingerprint}, not "
                f"{graph.graph_fingerprint}); --any-graph applies it all the same",
                file=path,
            )
        self.graph = graph = configure(graph, config)
        # Older checkpoints don't say what they learned; their own graph does.
        known = checkpoint.task
        self.task = stored_task(known, path) if known else find_task(graph, config.training.metric)
        if config.model.labels_as_input:
            _check_known_labels(graph, self.task, "a model trained with --labels-as-input")
        check_model(config.model, facts_of(graph))
        self.device = graph.node_ids.device
        with torch.device("meta"):
            shapes = self._build(config)
        with agreed(graph.ring.comm, "fit the checkpoint"):
            check_stored(shapes, checkpoint, path)
        self.model = self._build(config).to(self.device)
        sharded: dict[str, np.ndarray] = {}
        with agreed(graph.ring.comm, "restore the checkpoint"), torch.no_grad():
            if any(is_sharded(parameter) for parameter in self.model.parameters()):
                sharded = files.read_sharded(path, graph.node_ids.cpu().numpy())
            restore_model(self.model, self.checkpoint, sharded, path)
        self.model.eval()

    def _build(self, config: Config) -> Model:
        seed = config.training.seed
        return build_model(config.model, self.graph, self.task.num_outputs, seed)

    @torch.no_grad()
    def run(self, *, embeddings: bool = False, smooth: bool = False) -> Prediction:
        """Predict every node; collective.

        Args:
            embeddings: also what the last layer reads.
            smooth: apply Correct & Smooth, which reads the labels of training nodes.

        Raises:
            InputError: the model or the labels don't admit what is asked for.
            NumericalError: no prediction is finite.
        """
        graph, model = self.graph, self.model
        if smooth and not isinstance(self.task, MultiClass):
            raise InputError("--correct-and-smooth needs one class per node")
        if smooth:
            _check_known_labels(graph, self.task, "--correct-and-smooth")
        with arithmetic(self.checkpoint.config.device.precision, self.device):
            scores = model(graph).float()
        if smooth:
            _say_directed(graph)
            scores = correct_and_smooth(graph, torch.softmax(scores, dim=-1), _train_mask(graph))
            rows = _classes(scores := _shares(scores))
        else:
            rows = self.task.predictions(scores)
        if embeddings:
            hidden = model.embed(graph)
            if not isinstance(hidden, torch.Tensor):
                raise InputError("a model of one layer has no embeddings; train with more --layers")
            rows["embeddings"] = hidden.float().cpu().numpy()
        return _prediction(graph, self.task, rows, scores)


@dataclass(frozen=True)
class Prediction:
    """This rank's rows, and the metric over the train, valid and test nodes of all ranks.

    `rows` holds `probabilities` `[n, C]`, `classes` `[n]` (or `[n, C]` 0/1 for several labels),
    `original_ids` `[n]` and, where asked for, `embeddings` `[n, hidden]`. `not_finite` nodes of all
    ranks have something in their rows that is not finite, the first of them, by its id in the
    graph, `first_not_finite`.
    """

    rows: dict[str, np.ndarray]
    metric: str
    scores: dict[str, float]
    not_finite: int = 0
    first_not_finite: int = -1


def predict_from_labels(graph: PartitionedGraph) -> Prediction:
    """Label propagation from the training nodes, without a model; collective.

    Raises:
        InputError: the graph has no training labels, or several labels per node.
        NumericalError: no prediction is finite.
    """
    task = find_task(graph, "auto")
    if not isinstance(task, MultiClass):
        raise InputError("--label-propagation needs one class per node")
    _say_directed(graph)
    soft_NC = _shares(label_propagation(graph, _train_mask(graph), task.num_outputs))
    return _prediction(graph, task, _classes(soft_NC), soft_NC)


def _classes(soft_NC: Tensor) -> dict[str, np.ndarray]:
    return {
        "probabilities": soft_NC.cpu().numpy(),
        "classes": soft_NC.argmax(dim=-1).cpu().numpy(),
    }


def _prediction(
    graph: PartitionedGraph, task: Task, rows: dict[str, np.ndarray], scores_NC: Tensor
) -> Prediction:
    scores = {}
    for split in SPLITS:
        targets = task.targets(graph, split)
        score = task.metrics(graph, scores_NC[targets], targets, split)[task.metric]
        if math.isfinite(score):
            scores[split] = score
    count, first = _not_finite(graph, rows)
    if count == graph.num_nodes:
        raise NumericalError(
            "no node has a finite prediction: the model or its input is not finite"
        )
    rows = rows | {"original_ids": graph.original_ids.cpu().numpy()}
    return Prediction(rows, task.metric, scores, count, first)


def _not_finite(graph: PartitionedGraph, rows: dict[str, np.ndarray]) -> tuple[int, int]:
    """How many nodes of all ranks have values that aren't finite, and the lowest id; collective."""
    comm, ids = graph.ring.comm, graph.node_ids.cpu().numpy()
    bad = np.zeros(len(ids), bool)
    for array in rows.values():
        if array.dtype.kind == "f":
            bad |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    count = comm.allreduce(int(bad.sum()), where="check the predictions")
    lowest = int(ids[bad].min()) if bad.any() else graph.num_nodes
    return count, comm.allreduce(lowest, "min", where="check the predictions")


def _check_known_labels(graph: PartitionedGraph, task: BuiltInTask, reader: str) -> None:
    """Labels of training nodes, of classes that the model knows; collective.

    Raises:
        InputError: there are none, or one is of another class.
    """
    most = count = -1
    if graph.labels is not None and graph.train_mask is not None and graph.labels.dim() == 1:
        known = graph.labels[graph.train_mask & (graph.labels >= 0)]
        count, most = len(known), int(known.max()) if len(known) else -1
    count, most = graph.ring.comm.allreduce(np.array([count, most]), "max", where="known labels")
    if count <= 0:
        raise InputError(f"{reader} reads the labels of training nodes, and this graph has none")
    if most >= task.num_outputs:
        raise InputError(
            f"{reader} reads the labels of training nodes, which must be classes of the model: "
            f"0 .. {task.num_outputs - 1}",
            value=int(most),
        )


def _say_directed(graph: PartitionedGraph) -> None:
    if graph.ring.comm.rank == 0 and not graph.symmetric:
        print(
            "note: the graph is directed: labels spread along its edges, and not from nodes that "
            "no edge ends at; convert --symmetrise makes it undirected",
            flush=True,
        )


def _train_mask(graph: PartitionedGraph) -> Tensor:
    if graph.train_mask is None:
        raise InputError("the graph has no split, so no training labels")
    return graph.train_mask


def _shares(scores_NC: Tensor) -> Tensor:
    """Rows divided by their sums; equal shares where nothing is known, nan where there is one."""
    sums_N1 = scores_NC.sum(dim=1, keepdim=True)
    unknown_N1 = sums_N1 <= 0
    shares_NC = scores_NC / torch.where(unknown_N1, 1.0, sums_N1)
    return torch.where(unknown_N1, 1 / scores_NC.shape[1], shares_NC)


def write_predictions(
    path: Path,
    graph: PartitionedGraph,
    rows: dict[str, np.ndarray],
    attributes: dict[str, int | str | dict],
) -> None:
    """Write rows of all ranks in the order of the graph's nodes; collective.

    The ending of `path` says as what, see `prediction_file`.
    Rows travel slab by slab to rank 0, which alone writes: no rank holds more than a slab.

    Raises:
        OutputError: the file can't be written.
    """
    comm = graph.ring.comm
    output: PredictionFile | None = None
    with ExitStack() as stack:
        with agreed(comm, "start the predictions"):
            if comm.rank == 0:
                output = stack.enter_context(prediction_file.create(path))
                output.lay_out(graph.num_nodes, rows)
        for names in prediction_file.passes(path, list(rows)):
            _write_slabs(comm, graph, {name: rows[name] for name in names}, output)
        with agreed(comm, "name the predictions"):
            if output is not None:
                output.finish(
                    {
                        "num_nodes": graph.num_nodes,
                        "graph_fingerprint": graph.graph_fingerprint,
                        **attributes,
                    }
                )
                stack.close()


def _write_slabs(
    comm: Communicator,
    graph: PartitionedGraph,
    rows: dict[str, np.ndarray],
    output: PredictionFile | None,
) -> None:
    ids = graph.node_ids.cpu().numpy()
    order = np.argsort(ids)
    ids = ids[order]
    widest = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in rows.values())
    step = max(1, SLAB_BYTES // max(widest, 1))
    for low in range(0, graph.num_nodes, step):
        high = min(low + step, graph.num_nodes)
        mine = slice(*np.searchsorted(ids, (low, high)))
        there = _to_root(comm, ids[mine])
        slabs = {}
        for name, array in rows.items():
            values = _to_root(comm, array[order[mine]])
            if output is not None:
                slabs[name] = np.empty((high - low, *array.shape[1:]), array.dtype)
                slabs[name][there - low] = values
        # Agreed for each slab, or the other ranks would wait for one that has given up.
        with agreed(comm, "write the predictions"):
            if output is not None:
                output.put(low, slabs)


def _to_root(comm: Communicator, array: np.ndarray) -> np.ndarray:
    nothing = array[:0]
    sent = [array if rank == 0 else nothing for rank in range(comm.size)]
    return np.concatenate(comm.alltoallv(sent, where="predictions"))
