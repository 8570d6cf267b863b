"""The time limit on waiting for another rank."""

from __future__ import annotations

import math
import os
from numbers import Real

from hpcgnn.errors import InputError

TIMEOUT = "HPCGNN_TIMEOUT"
DEFAULT_SECONDS = 600.0
MOST_SECONDS = 1e8


def seconds(text: str) -> float:
    """Return a limit from its text; ValueError unless above 0 and at most `MOST_SECONDS`."""
    value = float(text)
    if not (math.isfinite(value) and 0 < value <= MOST_SECONDS):
        raise ValueError
    return value


def given(value: object) -> float:
    """Return a time limit that a program passes, in seconds.

    Raises:
        InputError: it is no number of seconds.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) <= MOST_SECONDS:  # type: ignore[arg-type]
        raise InputError(
            f"timeout must be a number of seconds above 0, at most {MOST_SECONDS:.0e}", value=value
        )
    return float(value)  # type: ignore[arg-type]


def from_environment() -> float:
    """Return HPCGNN_TIMEOUT in seconds, or 600.

    Raises:
        InputError: it is not a valid number of seconds.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        return seconds(text) if text else DEFAULT_SECONDS
    except ValueError:
        raise InputError(
            f"{TIMEOUT} must be a number of seconds above 0, at most {MOST_SECONDS:.0e}",
            value=text,
        ) from None
