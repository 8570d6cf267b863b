"""Predictions of a checkpoint for every node, in the order of the graph."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph import PartitionedGraph
from hpcgnn.nn.smoothing import correct_and_smooth, label_propagation
from hpcgnn.storage import atomic
from hpcgnn.storage.parallel import agreed
from hpcgnn.storage.schema import PREDICTIONS, VERSION
from hpcgnn.train import checkpoint as files
from hpcgnn.train.build import build_model, configure
from hpcgnn.train.checkpoint import Checkpoint
from hpcgnn.train.precision import arithmetic
from hpcgnn.train.state import is_sharded, restore_model
from hpcgnn.train.task import Task, find_task

SLAB_BYTES = 64 << 20


def read_checkpoint(path: Path, comm: Communicator) -> Checkpoint:
    """The checkpoint without sharded rows, read by rank 0; collective.

    Raises:
        InputError: missing, damaged, or no checkpoint.
    """
    found: Checkpoint | None = None
    with agreed(comm, "read the checkpoint"):
        if comm.rank == 0:
            found = files.read(path)
    whole: Checkpoint = comm.broadcast(found, where="checkpoint")
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
        self.graph, self.checkpoint = graph, checkpoint
        config = self.checkpoint.config
        same = self.checkpoint.graph_fingerprint == graph.graph_fingerprint
        if not same and not any_graph:
            raise InputError(
                f"was trained on another graph ({self.checkpoint.graph_fingerprint}, not "
                f"{graph.graph_fingerprint}); --any-graph applies it all the same",
                file=path,
            )
        configure(graph, config)
        self.task: Task = find_task(graph, config.metric)
        self.device = graph.node_ids.device
        self.model = build_model(config, graph, self.task.num_outputs).to(self.device)
        sharded: dict[str, np.ndarray] = {}
        if any(is_sharded(parameter) for parameter in self.model.parameters()):
            sharded = files.read_sharded(path, graph.node_ids.cpu().numpy())
        with torch.no_grad():
            restore_model(self.model, self.checkpoint, sharded, path)
        self.model.eval()

    @torch.no_grad()
    def run(self, *, embeddings: bool = False, smooth: bool = False) -> Prediction:
        """Predict every node; collective.

        Args:
            embeddings: also what the last layer reads.
            smooth: apply Correct & Smooth, which reads the labels of training nodes.

        Raises:
            InputError: the model or the labels don't admit what is asked for.
        """
        graph, model = self.graph, self.model
        if smooth and self.task.multilabel:
            raise InputError("--correct-and-smooth needs one class per node")
        with arithmetic(self.checkpoint.config.precision, self.device):
            scores = model(graph).float()
        rows: dict[str, np.ndarray] = {}
        if self.task.multilabel:
            rows["probabilities"] = torch.sigmoid(scores).cpu().numpy()
            rows["classes"] = (scores > 0).to(torch.int8).cpu().numpy()
        else:
            soft_NC = torch.softmax(scores, dim=-1)
            if smooth:
                soft_NC = scores = _shares(correct_and_smooth(graph, soft_NC, _train_mask(graph)))
            rows["probabilities"] = soft_NC.cpu().numpy()
            rows["classes"] = scores.argmax(dim=-1).cpu().numpy()
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
    `original_ids` `[n]` and, where asked for, `embeddings` `[n, hidden]`.
    """

    rows: dict[str, np.ndarray]
    metric: str
    scores: dict[str, float]


def predict_from_labels(graph: PartitionedGraph) -> Prediction:
    """Label propagation from the training nodes, without a model; collective.

    Raises:
        InputError: the graph has no training labels, or several labels per node.
    """
    task = find_task(graph, "auto")
    if task.multilabel:
        raise InputError("--label-propagation needs one class per node")
    if graph.ring.comm.rank == 0 and not graph.symmetric:
        print(
            "note: the graph is directed: labels spread along its edges, and not from nodes that "
            "no edge ends at; convert --symmetrise makes it undirected",
            flush=True,
        )
    soft_NC = _shares(label_propagation(graph, _train_mask(graph), task.num_outputs))
    rows = {
        "probabilities": soft_NC.cpu().numpy(),
        "classes": soft_NC.argmax(dim=-1).cpu().numpy(),
    }
    return _prediction(graph, task, rows, soft_NC)


def _prediction(
    graph: PartitionedGraph, task: Task, rows: dict[str, np.ndarray], scores_NC: Tensor
) -> Prediction:
    masks = {"train": graph.train_mask, "valid": graph.valid_mask, "test": graph.test_mask}
    scores = {
        name: task.score(graph, scores_NC, mask) for name, mask in masks.items() if mask is not None
    }
    return Prediction(
        rows | {"original_ids": graph.original_ids.cpu().numpy()}, task.metric, scores
    )


def _train_mask(graph: PartitionedGraph) -> Tensor:
    if graph.train_mask is None:
        raise InputError("the graph has no split, so no training labels")
    return graph.train_mask


def _shares(scores_NC: Tensor) -> Tensor:
    """Rows divided by their sums; equal shares where nothing is known."""
    sums_N1 = scores_NC.sum(dim=1, keepdim=True)
    shares_NC = scores_NC / torch.where(sums_N1 > 0, sums_N1, 1.0)
    return torch.where(sums_N1 > 0, shares_NC, 1 / scores_NC.shape[1])


def write_predictions(
    path: Path,
    graph: PartitionedGraph,
    rows: dict[str, np.ndarray],
    attributes: dict[str, int | str | dict],
) -> None:
    """Write rows of all ranks in the order of the graph's nodes; collective.

    Rows travel slab by slab to rank 0, which alone writes: no rank holds more than a slab.

    Raises:
        OutputError: the file can't be written.
    """
    comm = graph.ring.comm
    output: atomic.OutputFile | None = None
    with ExitStack() as stack:
        with agreed(comm, "start the predictions"):
            if comm.rank == 0:
                output = stack.enter_context(atomic.create(path))
        _write_slabs(comm, graph, rows, output)
        with agreed(comm, "name the predictions"):
            if output is not None:
                output.set_attributes(
                    {
                        "format": PREDICTIONS,
                        "version": VERSION,
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
    output: atomic.OutputFile | None,
) -> None:
    ids = graph.node_ids.cpu().numpy()
    order = np.argsort(ids)
    ids = ids[order]
    widest = max(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in rows.values())
    step = max(1, SLAB_BYTES // max(widest, 1))
    datasets = {}
    with agreed(comm, "lay out the predictions"):
        if output is not None:
            for name, array in rows.items():
                shape = (graph.num_nodes, *array.shape[1:])
                datasets[name] = output.dataset(name, array.dtype, shape)
    for low in range(0, graph.num_nodes, step):
        high = min(low + step, graph.num_nodes)
        mine = slice(*np.searchsorted(ids, (low, high)))
        there = _to_root(comm, ids[mine])
        for name, array in rows.items():
            values = _to_root(comm, array[order[mine]])
            # Agreed for each slab, or the other ranks would wait for one that has given up.
            with agreed(comm, "write the predictions"):
                if output is not None:
                    slab = np.empty((high - low, *array.shape[1:]), array.dtype)
                    slab[there - low] = values
                    datasets[name][low:high] = slab
                    output.check()


def _to_root(comm: Communicator, array: np.ndarray) -> np.ndarray:
    nothing = array[:0]
    sent = [array if rank == 0 else nothing for rank in range(comm.size)]
    return np.concatenate(comm.alltoallv(sent, where="predictions"))
