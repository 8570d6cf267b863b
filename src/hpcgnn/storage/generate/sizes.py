"""Limits on the size of a graph to be generated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError, human
from hpcgnn.storage.schema import MAX_WIDTH
from hpcgnn.system import available_memory

SLAB_EDGES = 1 << 22  # edges drawn at once
_TABLES = 5  # tables with a number for each pair of slabs, held while edges are counted
_MOST_SHRUNK = 1000  # the largest compression ratio of gzip


def check_sizes(nodes: int, degree: float, features: int, classes: int, seed: int) -> None:
    """Raise InputError, naming the option, for sizes that no generator supports."""
    values = {
        "nodes": nodes,
        "degree": degree,
        "features": features,
        "classes": classes,
        "seed": seed,
    }
    wrong = {
        "--nodes must lie in 1 .. 2^48": not 1 <= nodes <= 1 << 48,
        f"--degree must lie in 0 .. {nodes}, the number of --nodes": not 0 <= degree <= nodes,
        "--degree must be at most 2^20, with at most 2^48 edges": not (
            degree <= 1 << 20 and degree * nodes <= 1 << 48
        ),
        "--features must lie in 0 .. 2^20": not 0 <= features <= 1 << 20,
        f"--classes must lie in 0 .. {nodes}, the number of --nodes": not 0 <= classes <= nodes,
        "--classes must be at most 2^31": not classes <= MAX_WIDTH,
        "--seed must lie in 0 .. 2^63 - 1": not 0 <= seed < 1 << 63,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(message, value=values[message.split()[0][2:]])


def check_room(
    out: Path, nodes: int, degree: float, features: int, classes: int, *, compress: bool
) -> None:
    """Raise InputError if the disk is too small for the file, or memory for generating it."""
    index = 4 if nodes <= np.iinfo(np.int32).max else 8
    edges = round(nodes * degree)
    needed = 8 * (nodes + 1) + index * edges + nodes * (1 + (8 if classes else 0) + 4 * features)
    slabs = -(-edges // SLAB_EDGES)
    tables = 8 * (_TABLES * slabs * slabs + 3 * slabs * classes)
    given = f"{nodes:,} nodes of degree {degree:g} with {features} features"
    if tables > (memory := available_memory()):
        raise InputError(
            f"{given} need {human(tables)} of memory, and {human(memory)} are free: "
            "lower --nodes or --degree"
        )
    try:
        free = shutil.disk_usage(out.absolute().parent).free
    except OSError:  # writing will report it
        return
    if needed // (_MOST_SHRUNK if compress else 1) > free:
        raise InputError(
            f"{given} need {human(needed)}, and {human(free)} are free: lower --nodes, "
            "--degree or --features, or choose another folder",
            file=out.parent,
        )
