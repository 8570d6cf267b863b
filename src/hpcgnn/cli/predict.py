"""`hpcgnn predict`: apply a checkpoint to every node."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.train.config import parse_size

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

HELP = "apply a checkpoint to every node"
PARALLEL = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("partition", help="partition file with one part per rank")
    parser.add_argument("checkpoint", help="checkpoint file of a training run")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.h5")
    parser.add_argument(
        "--embeddings", action="store_true", help="also write what the last layer reads"
    )
    parser.add_argument(
        "--any-graph", action="store_true", help="accept a checkpoint of another graph"
    )
    parser.add_argument("--halo-buffer", default="256MiB", help="memory for remote rows")
    parser.add_argument("--split", type=int, default=0, help="split to report the metric on")


def run(args: argparse.Namespace, comm: Communicator) -> int:
    # Only now, since PyTorch takes seconds: other ranks are answered meanwhile.
    with comm.at("imports"):
        from hpcgnn.comm.ring import Ring
        from hpcgnn.storage.load import load_partition
        from hpcgnn.train.predict import Predictor, write_predictions

    ring = Ring(comm, halo_buffer=parse_size(args.halo_buffer))
    graph = load_partition(args.partition, comm, split=args.split, ring=ring)
    predictor = Predictor(graph, Path(args.checkpoint), any_graph=args.any_graph)
    rows = predictor.run(embeddings=args.embeddings)
    scores = predictor.scores()
    checkpoint = predictor.checkpoint
    write_predictions(
        Path(args.output),
        graph,
        rows,
        {
            "config": checkpoint.config.to_json(),
            "checkpoint": Path(args.checkpoint).name,
            "epoch": checkpoint.epoch,
        },
    )
    if comm.rank == 0:
        shown = ", ".join(f"{name} {100 * score:.2f} %" for name, score in scores.items())
        print(f"{predictor.task.metric} of epoch {checkpoint.epoch}: {shown}")
        print(f"predictions of {graph.num_nodes:,} nodes: {args.output}")
    return 0
