"""`hpcgnn bench`: measure kernels beside peers, and the machine for `hpcgnn plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from hpcgnn.cli import bench_machine
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.settings import check_range

if TYPE_CHECKING:
    from hpcgnn.bench.timing import Row

PARALLEL = True

_MOST = 1 << 31
_SIZES = {
    "nodes": (170_000, "nodes of the power-law graph"),
    "edges": (2_500_000, "its stored edges"),
    "width": (128, "width of the sums"),
    "heads": (4, "attention heads"),
    "channels": (32, "channels of a head"),
    "repeat": (5, "repetitions in each of the turns that implementations take; medians are shown"),
    "threads": (1, "threads"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (text, add, _) in WHATS.items():
        add(whats.add_parser(name, help=text, description=text))


def run(args: argparse.Namespace, comm: Communicator) -> int:
    WHATS[args.what][2](args, comm)
    return 0


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    for name, (default, text) in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")


def _kernels(args: argparse.Namespace, comm: Communicator) -> None:
    for name in _SIZES:
        check_range(f"--{name}", getattr(args, name), 1, _MOST)
    import torch

    from hpcgnn.bench.kernels import run as measure
    from hpcgnn.bench.peers import Case
    from hpcgnn.bench.timing import TURNS

    if comm.size > 1:
        raise InputError("kernels are measured on one rank; start it without mpiexec")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here")
    torch.set_num_threads(args.threads)
    sizes = (args.nodes, args.edges, args.width, args.heads, args.channels)
    rows = measure(Case(*sizes, args.device, args.threads), comm, args.repeat)
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    print(
        f"{args.nodes:,} nodes, {args.edges:,} edges, {args.threads} thread(s), {args.device}, "
        f"medians of {TURNS if args.device == 'cpu' else 1} x {args.repeat}"
    )
    for row in rows:
        print(_line(row))


def _line(row: Row) -> str:
    text = f"{row.operation:48s} {row.implementation:16s}"
    if row.seconds is None:
        return f"{text} out of memory"
    text += f" {1e3 * row.seconds:9.1f} ms"
    if row.share is not None and row.num_bytes is not None:
        rate = row.num_bytes / row.seconds / 1e9
        text += f" {rate:9.1f} GB/s, {100 * row.share:.0f} % of a copy"
    elif row.ratio is not None:
        text += f" {row.ratio:7.2f} x"
    if row.peak_bytes is not None:
        text += f" {row.peak_bytes / 1e9:8.2f} GB"
    return text


WHATS = {
    "kernels": ("kernels, beside peers that are installed", _add_kernels, _kernels),
    "machine": (bench_machine.HELP, bench_machine.add_arguments, bench_machine.run),
}
