"""`hpcgnn bench`: kernels, epochs, messages and scaling beside peers; the machine, for `plan`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.cli import bench_machine
from hpcgnn.cli.file_name import file_name
from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import HpcgnnError, InputError, say
from hpcgnn.settings import check_range, parse_size

if TYPE_CHECKING:
    from hpcgnn.bench.epoch import EpochSettings
    from hpcgnn.bench.problem import Bench, Generated, ModelShape
    from hpcgnn.bench.training import Environment
    from hpcgnn.comm.communicator import Communicator

PARALLEL = True

_MOST = 1 << 31
_RING_SECONDS = 600.0
_KERNELS = {
    "nodes": (170_000, "nodes of the power-law graph"),
    "edges": (2_500_000, "stored edges of that graph"),
    "width": (128, "width of the rows that are summed"),
    "heads": (4, "attention heads"),
    "channels": (32, "channels per head"),
    "repeat": (5, "repetitions per round of all implementations; medians are shown"),
    "threads": (1, "threads"),
}
_GRAPH = {
    "nodes": (20_000, "nodes of the generated graph"),
    "features": (128, "features per node of the generated graph"),
    "classes": (40, "classes of the generated graph"),
    "seed": (0, "seed of the graph and the weights"),
}
_MODEL = {
    "layers": (3, "convolutions"),
    "hidden": (256, "width over all heads"),
    "heads": (4, "attention heads"),
}
_RING = {"repeat": (5, "repetitions; medians are shown")}
_RACE = {"epochs": (30, "epochs at most")}
_EPOCH = {
    "epochs": (3, "measured epochs per round"),
    "turns": (
        2,
        "rounds, each training in its own process; every other round in reverse order",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (text, add, _) in WHATS.items():
        add(whats.add_parser(name, help=text, description=text))


def run(args: argparse.Namespace, comm: Communicator) -> int:
    WHATS[args.what][2](args, comm)
    return 0


def _add_numbers(parser: argparse.ArgumentParser, numbers: dict[str, tuple[int, str]]) -> None:
    for name, (default, text) in numbers.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})"
        )


def _check_numbers(args: argparse.Namespace, *tables: dict[str, tuple[int, str]]) -> None:
    for table in tables:
        for name in table:
            least = 0 if name == "seed" else 1
            check_range(f"--{name}", getattr(args, name), least, _MOST - 1)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=file_name,
        metavar="FILE",
        help="write the results as JSON; -: to standard output instead of the table",
    )
    parser.add_argument(
        "--plot", type=file_name, metavar="FILE.svg|png|pdf", help="plot the results"
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")


def _add_problem(parser: argparse.ArgumentParser, ranks: str) -> None:
    parser.add_argument(
        "graph",
        type=Path,
        nargs="?",
        metavar="GRAPH.h5",
        help="graph to train on (default: one is generated)",
    )
    _add_numbers(parser, _GRAPH)
    parser.add_argument(
        "--degree",
        type=float,
        default=31.0,
        metavar="D",
        help="mean in-edges per node of the generated graph (31)",
    )
    parser.add_argument("--model", choices=("sage", "gcn", "gat", "gatv2"), default="sage")
    _add_numbers(parser, _MODEL)
    parser.add_argument(
        "--lr", type=float, default=0.01, metavar="X", help="Adam's learning rate (0.01)"
    )
    parser.add_argument(
        "--ranks",
        nargs="+",
        default=ranks.split(),
        metavar="PxT",
        help=f"ranks x threads of each hpcgnn run ({ranks})",
    )
    parser.add_argument(
        "--options",
        default="",
        metavar="TEXT",
        help="further options for `hpcgnn train`, such as '--mode sa'",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keep the graph and its partitions here for later runs",
    )
    parser.add_argument(
        "--most-memory",
        default="",
        metavar="SIZE",
        help="memory limit of a job, which is ended above it",
    )
    parser.add_argument(
        "--most-seconds",
        type=float,
        default=1800.0,
        metavar="S",
        help="time limit of a job in seconds (1800)",
    )
    _add_outputs(parser)


def _add_peers(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="PYTHON",
        default=Path(sys.executable),
        help="Python of an environment with DGL and PyTorch Geometric, see env/peers.sh (default: "
        "this one)",
    )
    parser.add_argument(
        "--with",
        dest="names",
        nargs="+",
        choices=names,
        default=names,
        metavar="PEER",
        help=f"peers to measure ({', '.join(names)})",
    )
    _add_no_peers(parser)


def _add_no_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-peers", action="store_true", help="measure hpcgnn only")


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    _add_numbers(parser, _KERNELS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    _add_no_peers(parser)
    _add_outputs(parser)


def _add_ring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks",
        default="2x1",
        metavar="PxT",
        help="ranks x threads to start if not under mpiexec (2x1)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["64KiB", "1MiB", "16MiB"],
        metavar="SIZE",
        help="message sizes (64KiB 1MiB 16MiB)",
    )
    _add_numbers(parser, _RING)
    _add_outputs(parser)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    _add_problem(parser, "1x1 2x1")
    _add_numbers(parser, _EPOCH)
    parser.add_argument(
        "--weak", action="store_true", help="keep the number of nodes per rank constant"
    )


def _add_accuracy(parser: argparse.ArgumentParser) -> None:
    _add_problem(parser, "2x1")
    _add_numbers(parser, _RACE)
    parser.add_argument(
        "--target", type=float, default=0.8, metavar="A", help="validation accuracy to reach (0.8)"
    )
    _add_peers(parser, ("PyG NeighborLoader", "DGL NeighborSampler"))


def _add_epoch(parser: argparse.ArgumentParser) -> None:
    _add_problem(parser, f"2x1 1x{min(2, os.cpu_count() or 1)}")
    _add_numbers(parser, _EPOCH)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device of hpcgnn and of the peers (cpu)",
    )
    _add_peers(parser, ("DGL", "PyG CSR", "PyG edge_index"))


def _kernels(args: argparse.Namespace, comm: Communicator) -> None:
    _check_numbers(args, _KERNELS)
    import torch

    from hpcgnn.bench import draw, kernels
    from hpcgnn.bench.output import Outputs
    from hpcgnn.bench.peers import Case

    if comm.size > 1:
        raise InputError("kernels are measured on one rank; start it without mpiexec")
    _check_device(args.device)
    outputs = Outputs(args.json, args.plot, args.force)
    outputs.check()
    torch.set_num_threads(args.threads)
    sizes = (args.nodes, args.edges, args.width, args.heads, args.channels)
    case = Case(*sizes, args.device, args.threads)
    report = kernels.run(case, comm, args.repeat, with_peers=not args.no_peers)
    outputs.write(report, draw.kernels)


def _check_device(kind: str) -> None:
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here")


def _epoch(args: argparse.Namespace, comm: Communicator) -> None:
    _check_numbers(args, _GRAPH, _MODEL, _EPOCH)
    _check_device(args.device)
    from hpcgnn.bench import draw
    from hpcgnn.bench.epoch import compare_epochs
    from hpcgnn.bench.output import Outputs

    outputs = Outputs(args.json, args.plot, args.force)
    outputs.check()
    settings = replace(_settings(args, args.epochs, args.turns), device=args.device)
    with _bench(args, comm) as bench:
        graph = args.graph or bench.generated(_generated(args, args.nodes))
        found = compare_epochs(bench, graph, _shape(args), settings, _peers(args))
    outputs.write(found, draw.epochs)


def _ring(args: argparse.Namespace, comm: Communicator) -> None:
    _check_numbers(args, _RING)
    from hpcgnn.bench import draw
    from hpcgnn.bench.output import Outputs
    from hpcgnn.bench.ring import measure_ring

    sizes = [parse_size(text) for text in args.sizes]
    outputs = Outputs(args.json, args.plot, args.force)
    if comm.size == 1:
        outputs.check()
        _start_ring(args)
        return
    with agreed(comm, "check the outputs"):
        if comm.rank == 0:
            outputs.check()
    found = measure_ring(comm, sizes, args.repeat)
    with agreed(comm, "write the outputs"):
        if comm.rank == 0:
            outputs.write(found, draw.ring)


def _start_ring(args: argparse.Namespace) -> None:
    """Measure the ring on ranks started here."""
    from hpcgnn.bench import job
    from hpcgnn.bench.job import Layout, Limits

    options: list[object] = ["bench", "ring", "--sizes", *args.sizes, "--repeat", args.repeat]
    for name in ("json", "plot"):
        options += [f"--{name}={getattr(args, name)}"] if getattr(args, name) else []
    options += ["--force"] if args.force else []
    ended = job.ours(options, Layout.parse(args.ranks), Limits(_RING_SECONDS, 1 << 62))
    if ended.problem is not None:
        raise HpcgnnError(f"bench: the ring on {Layout.parse(args.ranks)}: {ended.problem}")
    say(*ended.output.splitlines())


def _scale(args: argparse.Namespace, comm: Communicator) -> None:
    _check_numbers(args, _GRAPH, _MODEL, _EPOCH)
    from hpcgnn.bench import draw
    from hpcgnn.bench.output import Outputs
    from hpcgnn.bench.scale import measure_scale

    if args.weak and args.graph is not None:
        raise InputError("--weak generates its graphs: leave the graph out", file=args.graph)
    outputs = Outputs(args.json, args.plot, args.force)
    outputs.check()
    settings = _settings(args, args.epochs, args.turns)
    first = settings.layouts[0].ranks
    with _bench(args, comm) as bench:
        graphs = [
            args.graph
            or bench.generated(
                _generated(args, args.nodes * layout.ranks // first if args.weak else args.nodes)
            )
            for layout in settings.layouts
        ]
        found = measure_scale(bench, graphs, _shape(args), settings, weak=args.weak)
    outputs.write(found, draw.scale)


def _accuracy(args: argparse.Namespace, comm: Communicator) -> None:
    _check_numbers(args, _GRAPH, _MODEL, _RACE)
    check_range("--target", args.target, 0, 1)
    from hpcgnn.bench import draw
    from hpcgnn.bench.accuracy import race
    from hpcgnn.bench.output import Outputs

    outputs = Outputs(args.json, args.plot, args.force)
    outputs.check()
    settings = _settings(args, args.epochs, 1)
    with _bench(args, comm) as bench:
        graph = args.graph or bench.generated(_generated(args, args.nodes, "60/20/20"))
        found = race(bench, graph, _shape(args), settings, args.target, _peers(args))
    outputs.write(found, draw.accuracy)


def _settings(args: argparse.Namespace, epochs: int, turns: int) -> EpochSettings:
    check_range("--lr", args.lr, 0)
    from hpcgnn.bench.epoch import EpochSettings
    from hpcgnn.bench.problem import layouts

    return EpochSettings(
        layouts(args.ranks), epochs, turns, options=args.options, seed=args.seed, lr=args.lr
    )


@contextmanager
def _bench(args: argparse.Namespace, comm: Communicator) -> Iterator[Bench]:
    """Yield the folder for the files of a measurement and the limits of its jobs."""
    from hpcgnn import system
    from hpcgnn.bench.job import Limits
    from hpcgnn.bench.problem import Bench

    if comm.size > 1:
        raise InputError(f"bench {args.what} starts its own ranks; start it without mpiexec")
    most = parse_size(args.most_memory) if args.most_memory else system.available_memory() * 9 // 10
    check_range("--most-seconds", args.most_seconds, 1, 1e9)
    limits = Limits(args.most_seconds, most)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hpcgnn-bench-", dir=args.work) as scratch:
        yield Bench(Path(scratch), limits, args.work or Path(scratch))


def _generated(args: argparse.Namespace, nodes: int, split: str = "100/0/0") -> Generated:
    from hpcgnn.bench.problem import Generated
    from hpcgnn.storage.generate.sizes import check_sizes

    check_sizes(nodes, args.degree, args.features, args.classes, args.seed)
    return Generated(nodes, args.degree, args.features, args.classes, args.seed, split)


def _shape(args: argparse.Namespace) -> ModelShape:
    from hpcgnn.bench.problem import ModelShape

    return ModelShape(args.model, args.layers, args.hidden, args.heads)


def _peers(args: argparse.Namespace) -> Environment | None:
    from hpcgnn.bench.training import Environment

    if args.no_peers:
        return None
    if not args.peers.is_file():
        raise InputError(
            "is not a Python interpreter: env/peers.sh makes an environment with peers",
            file=args.peers,
        )
    return Environment(args.peers.absolute(), tuple(args.names))


Adding = Callable[[argparse.ArgumentParser], None]
Running = Callable[[argparse.Namespace, "Communicator"], None]
WHATS: dict[str, tuple[str, Adding, Running]] = {
    "kernels": ("neighbour sums and attention, compared with peers", _add_kernels, _kernels),
    "ring": (
        "messages between ranks, compared with plain MPI and overlapped with work",
        _add_ring,
        _ring,
    ),
    "scale": (
        "epochs on increasing numbers of ranks, compared with ideal scaling",
        _add_scale,
        _scale,
    ),
    "accuracy": (
        "seconds to a given accuracy, compared with sampled training",
        _add_accuracy,
        _accuracy,
    ),
    "epoch": ("an epoch of training, compared with every installed peer", _add_epoch, _epoch),
    "machine": (bench_machine.HELP, bench_machine.add_arguments, bench_machine.run),
}
