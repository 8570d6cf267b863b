"""`hpcgnn generate`: make a random graph with communities, or an R-MAT graph."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from hpcgnn.cli.displays import display_of
from hpcgnn.cli.file_name import file_name
from hpcgnn.display import Display
from hpcgnn.errors import InputError, counted

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator
    from hpcgnn.storage.generate.output import Generator

PARALLEL = True

_NOT_STORED = ("out", "force", "show")
_HOMOPHILY, _EXPONENT = 0.8, 2.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", choices=["sbm", "rmat"], help="planted communities with power-law degrees, or R-MAT"
    )
    parser.add_argument("out", type=file_name, metavar="OUT.h5")
    parser.add_argument(
        "--nodes", type=int, default=10_000, metavar="N", help="number of nodes (10000)"
    )
    parser.add_argument(
        "--degree", type=float, default=20.0, metavar="D", help="mean in-edges per node (20)"
    )
    parser.add_argument(
        "--features", type=int, default=64, metavar="F", help="features per node (64)"
    )
    parser.add_argument(
        "--classes", type=int, default=10, metavar="C", help="number of classes (10)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (0)")
    parser.add_argument(
        "--homophily",
        type=float,
        metavar="H",
        help=f"share of edges within a class, sbm only ({_HOMOPHILY})",
    )
    parser.add_argument(
        "--exponent",
        type=float,
        metavar="G",
        help=f"exponent of the power law of degrees, sbm only ({_EXPONENT})",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=1.0,
        help="standard deviation of the features around the mean of their class (1)",
    )
    parser.add_argument(
        "--split",
        default="60/20/20",
        metavar="A/B/C",
        help="shares for training, validation and test (60/20/20)",
    )
    parser.add_argument("--compress", action="store_true", help="gzip the datasets")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, comm: Communicator) -> int:
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.storage.generate.rmat import RMat
    from hpcgnn.storage.generate.sbm import PlantedPartition
    from hpcgnn.storage.generate.sizes import check_room
    from hpcgnn.storage.read.graph_file import GraphFile
    from hpcgnn.storage.schema import GRAPH
    from hpcgnn.storage.write.atomic import check_output_together

    began = time.monotonic()
    shares = _check(args)
    check_output_together(comm, args.out, GRAPH, force=args.force)
    with agreed(comm, "check the sizes"):
        if comm.rank == 0:
            sizes = args.nodes, args.degree, args.features, args.classes
            check_room(args.out, *sizes, compress=args.compress)
    graph: Generator
    if args.kind == "sbm":
        graph = PlantedPartition(
            comm,
            args.nodes,
            args.degree,
            max(1, args.classes),
            args.seed,
            homophily=_HOMOPHILY if args.homophily is None else args.homophily,
            exponent=_EXPONENT if args.exponent is None else args.exponent,
        )
        graph.num_classes = args.classes
    else:
        graph = RMat(args.nodes, args.degree, args.classes, args.seed)
    options = {k: v for k, v in vars(args).items() if k not in _NOT_STORED and v is not None}
    with display_of(args, comm.rank) as display:
        _write(args, comm, graph, shares, options, display)
        if comm.rank == 0:
            with GraphFile(args.out) as file:
                display.say(
                    f"{args.out}: {file.num_nodes:,} nodes, {file.num_edges:,} stored edges, "
                    f"{counted(file.num_features, 'feature')}, "
                    f"{counted(file.num_classes, 'class')}, "
                    f"{args.out.stat().st_size / 2**20:,.1f} MiB, {time.monotonic() - began:.1f} s"
                )
    return 0


def _write(
    args: argparse.Namespace,
    comm: Communicator,
    graph: Generator,
    shares: tuple[float, float, float],
    options: dict[str, Any],
    display: Display,
) -> None:
    from hpcgnn.storage.generate.output import write_generated

    write_generated(
        args.out,
        comm,
        graph,
        num_features=args.features,
        seed=args.seed,
        noise=args.noise,
        shares=shares,
        compress=args.compress,
        config={"verb": "generate", **options},
        display=display,
    )


def _check(args: argparse.Namespace) -> tuple[float, float, float]:
    """Check all options; return the shares of the split."""
    from hpcgnn.storage.generate.sizes import check_sizes

    sbm = args.kind == "sbm"
    for name in ("homophily", "exponent"):
        if getattr(args, name) is not None and not sbm:
            raise InputError(f"--{name} is an option of sbm, not of rmat")
    check_sizes(args.nodes, args.degree, args.features, args.classes, args.seed)
    wrong = {
        "--noise must lie in 0 .. 10^6": not 0 <= args.noise <= 1e6,
        "--homophily must lie in 0 .. 1": sbm and not 0 <= (args.homophily or 0) <= 1,
        "--exponent must be above 2, at most 1000": sbm and not 2 < (args.exponent or 3) <= 1000,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(message, value=getattr(args, message.split()[0][2:]))
    return _shares(args.split)


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(share) for share in text.split("/"))
    except ValueError:
        raise InputError("--split must be three numbers such as 60/20/20", value=text) from None
    if not (min(train, valid, test) >= 0 and 0 < train + valid + test < math.inf):
        raise InputError("--split must be three shares of at least 0, not all 0", value=text)
    return train, valid, test
