"""`hpcgnn predict`: apply a checkpoint to every node."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.cli.displays import display_of
from hpcgnn.cli.file_name import file_name
from hpcgnn.display import Display
from hpcgnn.errors import InputError, printable, warn
from hpcgnn.settings import HIGHEST, check_range
from hpcgnn.system import loading
from hpcgnn.train.prediction_file import check_ending, format_of

if TYPE_CHECKING:
    import torch

    from hpcgnn.comm.communicator import Communicator
    from hpcgnn.graph.partitioned import PartitionedGraph
    from hpcgnn.train.checkpoint.file import Checkpoint
    from hpcgnn.train.config import Config
    from hpcgnn.train.prediction import Prediction

PARALLEL = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    _add_kind(parser)
    _add_computation(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "partition",
        metavar="GRAPH.h5",
        help="partition file with one part per rank; on one rank graph.h5 also works",
    )
    parser.add_argument(
        "checkpoint",
        metavar="RUN",
        nargs="?",
        help="checkpoint file of a training run, or its run directory: best.h5 there, or last.h5 "
        "if there was no validation score",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=file_name,
        required=True,
        metavar="OUT",
        help="OUT.csv, OUT.parquet, OUT.h5 (HDF5) or OUT.npz",
    )
    parser.add_argument(
        "--only",
        metavar="TABLE",
        help="write only the nodes whose ids this table (CSV, Parquet) lists",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _add_kind(parser: argparse.ArgumentParser) -> None:
    """Add options on what is predicted, and from what."""
    parser.add_argument(
        "--embeddings", action="store_true", help="also write the input of the last layer"
    )
    parser.add_argument(
        "--any-graph", action="store_true", help="accept a checkpoint of another graph"
    )
    parser.add_argument(
        "--correct-and-smooth",
        action="store_true",
        help="correct predictions by propagated training errors, then smooth them",
    )
    parser.add_argument(
        "--label-propagation",
        action="store_true",
        help="predict from training labels alone, without a checkpoint",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="edges and links: predict these pairs, given as two columns of ids in a text file, or "
        ".npy [M, 2]",
    )


def _add_computation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--halo-buffer", metavar="SIZE", default="256MiB", help="memory for remote rows (256MiB)"
    )
    parser.add_argument(
        "--split",
        type=int,
        help="which of several splits to use for the metric and for training labels (default: that "
        "of the checkpoint; 0 without one)",
    )
    parser.add_argument(
        "--model",
        metavar="FILE.py:NAME",
        help="the file that a model of your own was trained with",
    )
    parser.add_argument(
        "--model-args",
        metavar="TEXT",
        help="arguments for a model that a Python program made, such as `hidden=64,layers=4`",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="device to compute on (auto)",
    )


def run(args: argparse.Namespace, comm: Communicator) -> int:
    _check(args)
    _check_output(args, comm)
    with display_of(args, comm.rank) as display:
        return _run(args, comm, display)


def _run(args: argparse.Namespace, comm: Communicator, display: Display) -> int:
    # Imported here, since PyTorch takes seconds: questions of other ranks are answered meanwhile.
    with comm.at("imports"), display.stage("load PyTorch"), loading():
        from hpcgnn.comm.agreement import agreed
        from hpcgnn.tasks.settings import shown as in_words
        from hpcgnn.train.config import Config
        from hpcgnn.train.open import open_part
        from hpcgnn.train.predict import read_checkpoint
        from hpcgnn.train.prediction_writing import write_predictions
        from hpcgnn.train.user_names import NodeTexts, node_texts

    where, checkpoint = Config(), None
    if not args.label_propagation:
        with comm.at("read the checkpoint"):
            path, checkpoint = read_checkpoint(Path(args.checkpoint), comm)
        args.checkpoint = str(path)
        # As in training, with the transports available now; nothing is kept for backward.
        where = checkpoint.config.changed(transport="auto", mode="sar")
    split = _split(args, comm, checkpoint, _fingerprint_of(args, comm))
    where = where.changed(device=args.device, halo_buffer=args.halo_buffer, split=split)
    with comm.at("read the partition"):
        kernels = _kernels(args, comm, where, checkpoint)
        graph = open_part(args.partition, comm, where, display, kernels)
    with display.stage("predict"):
        found, attributes = _predict(args, graph, checkpoint)
    attributes |= {"split": where.training.split, "not_finite": found.not_finite}
    with comm.at("write the predictions"):
        texts = NodeTexts()
        with agreed(comm, "read the names of the classes"):
            if comm.rank == 0:
                only = None if args.only is None else Path(args.only)
                trained_on = None if checkpoint is None else checkpoint.graph_fingerprint
                texts = node_texts(graph, only, named_by=found.named_by, trained_on=trained_on)
        write_predictions(
            Path(args.output), graph, found.rows, attributes, texts, found.numbers, display
        )
    if comm.rank == 0:
        if found.not_finite:
            warn(
                f"hpcgnn: warning: {args.output}: the predictions of {found.not_finite:,} "
                f"{found.what} are not finite, the first those of {found.what[:-1]} "
                f"{found.first_not_finite}: see its features, and those of its neighbours"
            )
        source = "label propagation" if checkpoint is None else f"epoch {checkpoint.epoch}"
        shown = ", ".join(f"{n} {in_words(found.metric, s)}" for n, s in found.scores.items())
        shown = shown or "not known without labels to score"
        display.say(f"{found.metric} of {source}: {shown}")
        display.say(f"predictions of {texts.count(found.count):,} {found.what}: {args.output}")
    return 0


def _kernels(
    args: argparse.Namespace, comm: Communicator, config: Config, checkpoint: Checkpoint | None
) -> Callable[[torch.device], None]:
    """Return the function that loads the kernels of a checkpoint's model, or those of none."""
    from functools import partial

    from hpcgnn.tasks.task import OWN
    from hpcgnn.train.checkpoint.arrays import built_in_task
    from hpcgnn.train.rehearsal import rehearse, rehearse_labels

    if checkpoint is None:
        return partial(rehearse_labels, Path(args.partition), comm, config)
    outputs: int | None = None
    if checkpoint.task and checkpoint.task.get("kind") != OWN:
        path = Path(args.checkpoint)
        outputs = built_in_task(checkpoint.task, checkpoint.arrays, path).num_outputs
    return partial(
        rehearse,
        Path(args.partition),
        comm,
        config,
        outputs=outputs or 0,
        trains=False,
        smooths=args.correct_and_smooth,
    )


def _predict(
    args: argparse.Namespace, graph: PartitionedGraph, checkpoint: Checkpoint | None
) -> tuple[Prediction, dict[str, int | str | dict]]:
    """Return the predictions, and the attributes that describe their origin."""
    from hpcgnn.train.label_propagation import predict_from_labels
    from hpcgnn.train.plan.refusal import explained
    from hpcgnn.train.predict import Predictor

    comm, device = graph.ring.comm, graph.node_ids.device
    if checkpoint is None:
        with comm.at("label propagation"):
            found = predict_from_labels(graph)
        return found, {"config": {"label_propagation": True, "split": args.split or 0}}
    path = Path(args.checkpoint)
    remedy = "a smaller --halo-buffer needs less"
    with comm.at("predict"), explained(graph, checkpoint.config, device, remedy):
        predictor = Predictor(
            graph,
            checkpoint,
            path,
            any_graph=args.any_graph,
            model_file=args.model or "",
            model_args=args.model_args,
        )
        found = predictor.run(
            embeddings=args.embeddings, smooth=args.correct_and_smooth, pairs=args.pairs
        )
    return found, {
        "config": checkpoint.config.to_json(),
        "checkpoint": printable(path.name),
        "epoch": checkpoint.epoch,
        "correct_and_smooth": int(args.correct_and_smooth),
    }


def _fingerprint_of(args: argparse.Namespace, comm: Communicator) -> str:
    """Return the fingerprint of the file's graph."""
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.partition.load import is_graph
    from hpcgnn.storage.read.graph_file import GraphFile
    from hpcgnn.storage.read.partition_file import PartitionFile

    found = ""
    with agreed(comm, "open the partition"):
        if comm.rank == 0:
            if comm.size == 1 and is_graph(args.partition):
                with GraphFile(args.partition) as whole:
                    found = whole.fingerprint
            else:
                with PartitionFile(args.partition) as file:
                    found = file.header["graph_fingerprint"]
    known: str = comm.broadcast(found, where="open the partition")
    return known


def _split(
    args: argparse.Namespace, comm: Communicator, checkpoint: Checkpoint | None, fingerprint: str
) -> int:
    """Return the requested split, else the checkpoint's on its own graph, else 0. Collective."""
    trained = None
    if checkpoint is not None and checkpoint.graph_fingerprint == fingerprint:
        trained = checkpoint.config.training.split
    if args.split is None:
        return trained or 0
    if trained not in (None, args.split) and comm.rank == 0:
        warn(
            f"hpcgnn: warning: the model was trained on split {trained}: among the nodes that "
            f"split {args.split} is scored on are some that it was trained on"
        )
    chosen: int = args.split
    return chosen


def _check(args: argparse.Namespace) -> None:
    check_ending(Path(args.output))
    if args.split is not None:
        check_range("--split", args.split, 0, HIGHEST)
    if not args.label_propagation:
        if args.checkpoint is None:
            raise InputError("give a checkpoint, or --label-propagation to do without")
        return
    for name, value in (
        ("a checkpoint", args.checkpoint),
        ("--correct-and-smooth", args.correct_and_smooth),
        ("--embeddings", args.embeddings),
        ("--pairs", args.pairs),
        ("--model", args.model),
    ):
        if value:
            raise InputError(f"--label-propagation uses no model: leave {name} out")


def _check_output(args: argparse.Namespace, comm: Communicator) -> None:
    """Refuse an output that can't be written or must not be replaced, before the model runs."""
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.storage.schema import PREDICTIONS
    from hpcgnn.storage.write.atomic import check_output_together

    out, inputs = Path(args.output), [args.partition, args.checkpoint, args.only, args.pairs]
    check_output_together(
        comm, out, PREDICTIONS, force=args.force, inputs=inputs, read_format=format_of
    )
    with agreed(comm, "check the output"):
        if comm.rank == 0:
            run = args.checkpoint if Path(args.checkpoint or "").name != "best.h5" else None
            for file in (args.partition, run, args.only, args.pairs):
                if file is not None and not Path(file).exists():
                    raise InputError("no such file", file=file)
            _check_parts(Path(args.partition), comm)


def _check_parts(path: Path, comm: Communicator) -> None:
    """Refuse a file without a part for each rank; called on rank 0."""
    from hpcgnn.storage.read.partition_file import MAX_PARTS
    from hpcgnn.storage.read.parts import check_ranks
    from hpcgnn.storage.read.reader import Reader
    from hpcgnn.storage.schema import GRAPH, PARTITION

    with Reader(path, None) as reader:
        kind = reader.text("format")
    if kind == GRAPH:
        if comm.size == 1:
            return
        from hpcgnn.partition.pipeline import default_file

        made = default_file(path, comm.size)
        if made.exists():
            raise InputError(f"is not divided into parts: predict on {made}", file=path)
    with Reader(path, PARTITION) as reader:
        check_ranks(reader.integer("num_parts", 1, MAX_PARTS), comm, path)
