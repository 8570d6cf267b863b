"""`hpcgnn export`: a checkpoint's weights for PyTorch, in a file of tensors by name."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcgnn.cli.file_name import file_name
from hpcgnn.errors import say

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="RUN",
        type=Path,
        help="a checkpoint, or a run directory: its best checkpoint, else its last",
    )
    parser.add_argument("out", type=file_name, metavar="OUT.safetensors|OUT.pt")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, comm: None) -> int:
    from hpcgnn.train.weights import export  # imported here: PyTorch takes seconds to load

    made = export(args.checkpoint, args.out, force=args.force)
    say(f"{args.out}: {len(made.names)} arrays, {made.bytes:,} bytes, of epoch {made.epoch}")
    renamed = [f"  {own} is {outer}" for own, outer in made.names.items() if own != outer]
    if renamed:
        say(*renamed)
    return 0
