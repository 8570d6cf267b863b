"""The longest wait for another rank."""

from __future__ import annotations

import math
import os

from hpcgnn.errors import InputError

TIMEOUT = "HPCGNN_TIMEOUT"
DEFAULT_SECONDS = 600.0
MOST_SECONDS = 1e8


def seconds(text: str) -> float:
    """A limit from its text; ValueError unless it is a number above 0 that a clock can hold."""
    value = float(text)
    if not (math.isfinite(value) and 0 < value <= MOST_SECONDS):
        raise ValueError
    return value


def from_environment() -> float:
    """HPCGNN_TIMEOUT, or 600.

    Raises:
        InputError: it is no number of seconds.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        return seconds(text) if text else DEFAULT_SECONDS
    except ValueError:
        raise InputError(
            f"{TIMEOUT} must be a number of seconds above 0, at most {MOST_SECONDS:.0e}",
            value=text,
        ) from None
