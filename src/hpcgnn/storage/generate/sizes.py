"""How large a graph may be that is asked for."""

from __future__ import annotations

from hpcgnn.errors import InputError
from hpcgnn.storage.schema import MAX_WIDTH


def check_sizes(nodes: int, degree: float, features: int, classes: int, seed: int) -> None:
    """Raise InputError, by the name of the option, for what no generator makes."""
    values = {
        "nodes": nodes,
        "degree": degree,
        "features": features,
        "classes": classes,
        "seed": seed,
    }
    wrong = {
        "--nodes must lie in 1 .. 2^48": not 1 <= nodes <= 1 << 48,
        "--degree must lie in 0 .. N": not 0 <= degree <= nodes,
        "--degree must be at most 2^20, and 2^48 edges are the most": not (
            degree <= 1 << 20 and degree * nodes <= 1 << 48
        ),
        "--features must lie in 0 .. 2^20": not 0 <= features <= 1 << 20,
        "--classes must lie in 0 .. N, at most 2^31": not 0 <= classes <= min(nodes, MAX_WIDTH),
        "--seed must lie in 0 .. 2^63 - 1": not 0 <= seed < 1 << 63,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(message, value=values[message.split()[0][2:]])
