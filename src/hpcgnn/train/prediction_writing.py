"""Writing the predictions of all ranks to one file, slab by slab."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.display import SILENT, Display, Stage
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.train import prediction_file
from hpcgnn.train.prediction_file import PredictionFile
from hpcgnn.train.user_names import NodeTexts

SLAB_BYTES = 64 << 20


def write_predictions(
    path: Path,
    graph: PartitionedGraph,
    rows: dict[str, np.ndarray],
    attributes: dict[str, int | str | dict],
    texts: NodeTexts | None = None,
    numbers: np.ndarray | None = None,
    display: Display = SILENT,
) -> None:
    """Write rows of all ranks in the order of the graph's nodes, or of `numbers`; collective.

    The suffix of `path` determines the format, see `prediction_file`. Rows are sent slab by slab
    to rank 0, the only one that writes; no rank holds more than a slab.

    Args:
        rows: arrays by name, with this rank's rows.
        texts: on rank 0: class names, and the ids of the nodes to write.
        numbers: int64, position of each of this rank's rows in the output; None: by node.
        display: shows the progress.

    Raises:
        OutputError: the file can't be written.
        InputError: a node to write is not in the graph.
    """
    comm = graph.ring.comm
    texts = texts or NodeTexts()
    numbers = graph.node_ids.cpu().numpy() if numbers is None else numbers
    total = comm.allreduce(len(numbers), where="write the predictions")
    output: PredictionFile | None = None
    with ExitStack() as stack:
        with agreed(comm, "start the predictions"):
            if comm.rank == 0:
                output = stack.enter_context(prediction_file.create(path, texts.class_names))
                like = {name: array[:0] for name, array in rows.items()}
                output.lay_out(texts.count(total), like)
        for names in prediction_file.passes(path, list(rows)):
            texts.begin()
            with display.stage(f"write {path.name}", total, "rows") as stage:
                _write_slabs(comm, numbers, total, rows, names, output, texts, stage)
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


_IDS = {"original_ids"}


def _write_slabs(
    comm: Communicator,
    ids: np.ndarray,
    total: int,
    rows: dict[str, np.ndarray],
    names: list[str],
    output: PredictionFile | None,
    texts: NodeTexts,
    stage: Stage,
) -> None:
    order = np.argsort(ids)
    ids = ids[order]
    # The ids are sent with every array: they determine which rows are written.
    sent = {name: rows[name] for name in dict.fromkeys([*names, *_IDS & rows.keys()])}
    widest = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in sent.values())
    step = max(1, SLAB_BYTES // max(widest, 1))
    for low in range(0, total, step):
        high = min(low + step, total)
        mine = slice(*np.searchsorted(ids, (low, high)))
        there = _to_root(comm, ids[mine])
        slabs = {}
        for name, array in sent.items():
            values = _to_root(comm, array[order[mine]])
            if output is not None:
                slabs[name] = np.empty((high - low, *array.shape[1:]), array.dtype)
                slabs[name][there - low] = values
        # Checked in every slab; otherwise the other ranks would wait for one that has failed.
        with agreed(comm, "write the predictions"):
            if output is not None:
                first, found = texts.chosen(slabs)
                if len(next(iter(found.values()))):
                    output.put(first, {name: found[name] for name in names})
                if high == total:
                    texts.check_found()
        stage.advance(high - low)


def _to_root(comm: Communicator, array: np.ndarray) -> np.ndarray:
    nothing = array[:0]
    sent = [array if rank == 0 else nothing for rank in range(comm.size)]
    return np.concatenate(comm.alltoallv(sent, where="predictions"))
