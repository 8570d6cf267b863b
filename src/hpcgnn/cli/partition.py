"""`hpcgnn partition`: cut a graph into parts, one per rank of the later job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpcgnn.cli.displays import display_of
from hpcgnn.cli.file_name import file_name
from hpcgnn.display import Display
from hpcgnn.errors import counted
from hpcgnn.partition.options import METHODS, QUALITIES, REFINEMENTS, PartitionOptions

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

PARALLEL = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = PartitionOptions()
    parser.add_argument("graph", metavar="GRAPH.h5")
    parser.add_argument("--parts", type=int, help="number of parts (default: one per rank)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="auto (default: parmetis where it is installed and fits, else kaminpar, else "
        "streaming), parmetis (on all ranks), kaminpar (on one), streaming (passes over the file, "
        "in little memory), random, block (in the order of the file)",
    )
    parser.add_argument(
        "-o", "--out", type=file_name, help="file to write (default: partitions/NAME.pP.h5)"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="seed of the method's random choices"
    )
    _add_balance(parser, default)
    parser.add_argument(
        "--refine",
        choices=REFINEMENTS,
        default=default.refine,
        help="volume: refine the result in passes that lower the rows sent in total, by the "
        "heaviest sender and to the heaviest receiver",
    )
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default=default.quality,
        help="quality of kaminpar's parts; higher quality takes longer",
    )
    parser.add_argument(
        "--repeatable",
        action="store_true",
        help="run kaminpar on one thread, for the same parts in every run",
    )
    parser.add_argument("--compress", action="store_true", help="gzip the partition file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _add_balance(parser: argparse.ArgumentParser, default: PartitionOptions) -> None:
    parser.add_argument(
        "--imbalance",
        type=float,
        default=default.imbalance,
        help="target for the cost of the heaviest part over the mean (default: 1.05)",
    )
    parser.add_argument(
        "--node-cost",
        type=int,
        default=default.node_cost,
        help="cost of computing a node (default: 10)",
    )
    parser.add_argument(
        "--edge-cost",
        type=int,
        default=default.edge_cost,
        help="cost of an edge into it (default: 1)",
    )
    parser.add_argument(
        "--train-balance",
        action=argparse.BooleanOptionalAction,
        default=default.balance_train,
        help="also spread the training nodes evenly (ParMETIS only; the cut grows)",
    )


def run(args: argparse.Namespace, comm: Communicator) -> int:
    options = PartitionOptions(
        seed=args.seed,
        imbalance=args.imbalance,
        node_cost=args.node_cost,
        edge_cost=args.edge_cost,
        balance_train=args.train_balance,
        refine=args.refine,
        quality=args.quality,
        repeatable=args.repeatable,
    )
    with display_of(args, comm.rank) as display:
        return _partition(args, comm, options, display)


def _partition(
    args: argparse.Namespace, comm: Communicator, options: PartitionOptions, display: Display
) -> int:
    from hpcgnn.partition.pipeline import partition_graph
    from hpcgnn.partition.quality import table, verdict

    report = partition_graph(
        comm,
        args.graph,
        args.parts,
        args.method,
        args.out,
        options=options,
        compress=args.compress,
        force=args.force,
        display=display,
    )
    if comm.rank == 0:
        display.say(*report["notes"], *table(report).splitlines(), verdict(report))
        display.say(
            f"{report['file']}: {counted(report['parts'], 'part')} in {report['seconds']:.1f} s, "
            f"peak memory {report['memory_bytes'] / 2**20:,.0f} MiB"
            + (f" on {comm.size} ranks together" if comm.size > 1 else "")
        )
    return 0
