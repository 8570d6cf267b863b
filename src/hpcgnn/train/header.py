"""What the header of a graph or partition file already tells, before PyTorch is loaded."""

from __future__ import annotations

from pathlib import Path

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.models.settings import ModelSettings, no_features
from hpcgnn.storage.read.partition_file import MAX_PARTS
from hpcgnn.storage.read.parts import check_ranks, part_name
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import COUNT_LIMITS, GRAPH, PARTITION
from hpcgnn.tasks.settings import LABELS, check_stored, nothing_to_learn
from hpcgnn.train.config import Config


def check_header(path: Path, comm: Communicator, config: Config) -> str:
    """Check that the file has a part for each rank, and what model and task need; collective.

    Returns:
        A note on which of several splits is used, on rank 0; "" if there is nothing to say.

    Raises:
        InputError: it hasn't, or its header is damaged.
    """
    splits = 0
    with agreed(comm, "open graph"):
        if comm.rank == 0:
            with Reader(path, None) as reader:
                splits = _check(reader, comm, config)
    if splits < 2 or config.task.on_pairs:
        return ""
    chosen = config.training.split
    return f"note: split {chosen} of 0 .. {splits - 1} is trained on; --split N chooses another"


def _check(reader: Reader, comm: Communicator, config: Config) -> int:
    """Check the header and return the number of splits."""
    task, prefixes, edges = config.task, [""], "edges"
    kind = reader.text("format")
    if kind not in (GRAPH, PARTITION):
        raise InputError("is neither a graph nor a partition", file=reader.path, value=kind)
    if kind == PARTITION:
        number = reader.integer("num_parts", 1, MAX_PARTS)
        check_ranks(number, comm, reader.path)
        prefixes, edges = [f"{part_name(part)}/" for part in range(number)], "in"
    counts = {
        name: reader.integer(name, 0, COUNT_LIMITS[name]) for name in ("num_features", "num_splits")
    }
    typed = reader.is_group(f"{prefixes[0]}nodes/typed_features")
    labels = reader.has(f"{prefixes[0]}nodes/labels")
    try:
        check_stored(
            task,
            edge_labels=any(reader.has(f"{prefix}{edges}/labels") for prefix in prefixes),
            edge_split=any(reader.has(f"{prefix}{edges}/split") for prefix in prefixes),
            arrays=reader.names(f"{prefixes[0]}nodes/arrays"),
        )
        _check_features(config.model, plain=counts["num_features"] > 0, typed=typed)
        of_labels = not task.on_pairs and task.target == LABELS
        if of_labels and not (labels and counts["num_splits"]):
            raise nothing_to_learn("split" if labels else "labels")
    except InputError as error:
        raise InputError(str(error), file=reader.path) from None
    return counts["num_splits"]


def _check_features(model: ModelSettings, *, plain: bool, typed: bool) -> None:
    if model.own or model.embedding:  # a user's model reports itself what it lacks
        return
    if not typed and (not plain or "features" in model.ignore.split(",")):
        raise no_features()
