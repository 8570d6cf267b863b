"""`hpcgnn new`: write a model file that trains as it is, to be changed."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from hpcgnn.cli.file_name import file_name
from hpcgnn.errors import InputError, OutputError, printable, say

PARALLEL = False

SIGN = "hpcgnn train graph.h5 --model"  # marks a file as ours
_START = 4096

MODEL = '''\
"""A model of your own.

    hpcgnn train graph.h5 --model {name}:Net --model-args hidden=64,layers=2
"""

import torch
from torch.nn import functional

from hpcgnn import nn


class Net(torch.nn.Module):
    """Called once with the graph and what --model-args gives; the same on every rank."""

    def __init__(self, graph, hidden=64, layers=2, dropout=0.3):
        super().__init__()
        # A rank holds `graph.num_local_nodes` of the nodes: features [n, F], and its own results.
        widths = [graph.features.shape[1], *[hidden] * (layers - 1), graph.num_classes]
        self.convs = torch.nn.ModuleList(
            nn.SAGEConv(a, b) for a, b in zip(widths, widths[1:])
        )
        # Statistics and masks over all ranks: torch's own would see one part only.
        self.norms = torch.nn.ModuleList(nn.BatchNorm(width) for width in widths[1:-1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, graph, x):
        """Rows of the local nodes to one row of class scores each."""
        for conv, norm in zip(self.convs, self.norms):
            x = functional.relu(norm(graph, conv(graph, x)))
            x = self.dropout(graph, x)
        return self.convs[-1](graph, x)
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=file_name, metavar="MODEL.py")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, comm: None) -> int:
    path: Path = args.file
    if path.suffix != ".py":
        raise InputError("must end in .py", value=str(path))
    text = MODEL.format(name=printable(path.name).replace('"', "'"))
    begun = False
    try:
        if os.path.lexists(path) and args.force:
            _replace(path, text)
        else:
            with path.open("x", encoding="utf-8") as file:
                begun = True
                file.write(text)
    except OSError as error:
        if begun:
            path.unlink(missing_ok=True)
        if error.errno == errno.EEXIST:
            text = "exists already: choose another name, or use --force"
            raise InputError(text, file=path) from None
        raise OutputError(f"can't be written: {error.strerror}", file=path) from None
    say(f"{path}: hpcgnn train graph.h5 --model {path}:Net")
    return 0


def _replace(path: Path, text: str) -> None:
    """Replace a file that this verb wrote, completely or not at all."""
    if path.is_symlink() or not path.is_file():
        raise InputError("is not a regular file: choose another name", file=path)
    with path.open("rb") as file:
        ours = SIGN.encode() in file.read(_START)
    if not ours:
        raise InputError(
            "exists and was not written by hpcgnn new, so --force doesn't replace it: choose "
            "another name, or remove it",
            file=path,
        )
    from hpcgnn.storage.write import atomic  # imported here: HDF5 takes a moment to load

    with atomic.claim(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        atomic.publish(temporary, path)
