"""Predictions of a checkpoint for every node, in the order of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.graph import PartitionedGraph
from hpcgnn.storage import atomic
from hpcgnn.storage.schema import PREDICTIONS, VERSION
from hpcgnn.train import checkpoint as files
from hpcgnn.train.build import build_model
from hpcgnn.train.checkpoint import Checkpoint
from hpcgnn.train.state import is_sharded, restore_model
from hpcgnn.train.task import Task, find_task

SLAB_BYTES = 64 << 20


class Predictor:
    """A checkpoint's model on one partitioned graph.

    Raises:
        InputError: the checkpoint is damaged, or of another graph or model.
    """

    def __init__(self, graph: PartitionedGraph, path: Path, *, any_graph: bool = False) -> None:
        self.graph, comm = graph, graph.ring.comm
        found: Checkpoint | None = None
        error: HpcgnnError | None = None
        if comm.rank == 0:
            try:
                found = files.read(path)
            except HpcgnnError as caught:
                error = caught
        comm.agree(error, where="checkpoint")
        self.checkpoint: Checkpoint = comm.broadcast(found, where="checkpoint")
        config = self.checkpoint.config
        same = self.checkpoint.graph_fingerprint == graph.graph_fingerprint
        if not same and not any_graph:
            raise InputError(
                f"was trained on another graph ({self.checkpoint.graph_fingerprint}, not "
                f"{graph.graph_fingerprint}); --any-graph applies it all the same",
                file=path,
            )
        graph.seed, graph.mode = config.seed, config.mode
        graph.fewest_rows, graph.cache_first = config.fewest_rows, config.cache_first
        self.task: Task = find_task(graph, config.metric)
        self.model = build_model(config, graph, self.task.num_outputs)
        sharded: dict[str, np.ndarray] = {}
        if any(is_sharded(parameter) for parameter in self.model.parameters()):
            sharded = files.read_sharded(path, graph.node_ids.cpu().numpy())
        with torch.no_grad():
            restore_model(self.model, self.checkpoint, sharded, path)
        self.model.eval()

    @torch.no_grad()
    def run(self, embeddings: bool = False) -> dict[str, np.ndarray]:
        """This rank's rows: `probabilities` `[n, C]`, `classes`, and `embeddings` if wanted."""
        graph, model = self.graph, self.model
        logits = model(graph)
        rows: dict[str, np.ndarray] = {}
        if self.task.multilabel:
            rows["probabilities"] = torch.sigmoid(logits).cpu().numpy()
            rows["classes"] = (logits > 0).to(torch.int8).cpu().numpy()
        else:
            rows["probabilities"] = torch.softmax(logits, dim=-1).cpu().numpy()
            rows["classes"] = logits.argmax(dim=-1).cpu().numpy()
        if embeddings:
            hidden = model.embed(graph)
            if not isinstance(hidden, torch.Tensor):
                raise InputError("a model of one layer has no embeddings; train with more --layers")
            rows["embeddings"] = hidden.cpu().numpy()
        rows["original_ids"] = graph.original_ids.cpu().numpy()
        return rows

    def scores(self) -> dict[str, float]:
        """The metric on the train, valid and test nodes; collective."""
        graph = self.graph
        with torch.no_grad():
            logits = self.model(graph)
        masks = {"train": graph.train_mask, "valid": graph.valid_mask, "test": graph.test_mask}
        return {
            name: self.task.score(graph, logits, mask)
            for name, mask in masks.items()
            if mask is not None
        }


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
    error: HpcgnnError | None = None
    try:
        if comm.rank == 0:
            with atomic.create(path) as output:
                _write_slabs(comm, graph, rows, output)
                output.set_attributes(
                    {
                        "format": PREDICTIONS,
                        "version": VERSION,
                        "num_nodes": graph.num_nodes,
                        "graph_fingerprint": graph.graph_fingerprint,
                        **attributes,
                    }
                )
        else:
            _write_slabs(comm, graph, rows, None)
    except HpcgnnError as caught:
        error = caught
    comm.agree(error, where="write predictions")


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
            if output is not None:
                slab = np.empty((high - low, *array.shape[1:]), array.dtype)
                slab[there - low] = values
                datasets[name][low:high] = slab


def _to_root(comm: Communicator, array: np.ndarray) -> np.ndarray:
    nothing = array[:0]
    sent = [array if rank == 0 else nothing for rank in range(comm.size)]
    return np.concatenate(comm.alltoallv(sent, where="predictions"))
