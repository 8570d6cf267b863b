"""Groups of parameters that are learned with values of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from hpcgnn.errors import InputError


def parameter_groups(text: str, named: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Groups for an optimizer: `*.bias:weight_decay=0;inputs.*:lr=0.001`, the rest after them.

    Each parameter is in the group of the first pattern that fits its name (as file names do).

    Raises:
        InputError: no such text, or a pattern that fits no parameter.
    """
    groups: list[dict[str, Any]] = []
    patterns: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        pattern, colon, values = part.rpartition(":")
        if not colon or not pattern:
            raise InputError("--param-groups takes PATTERN:lr=X,weight_decay=X;...", value=part)
        patterns.append(pattern.strip())
        groups.append({"params": [], **_numbers(values, part)})
    rest: dict[str, Any] = {"params": []}
    for name, parameter in named:
        fits = (g for p, g in zip(patterns, groups, strict=True) if fnmatch.fnmatchcase(name, p))
        next(fits, rest)["params"].append(parameter)
    for pattern, group in zip(patterns, groups, strict=True):
        if not group["params"]:
            raise InputError("--param-groups: no parameter has a name like", value=pattern)
    return [*groups, rest] if rest["params"] else groups


def _numbers(text: str, part: str) -> dict[str, float]:
    found = {}
    for entry in text.split(","):
        name, _, value = (piece.strip() for piece in entry.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in ("lr", "weight_decay") or not 0 <= number <= 1e6:
            raise InputError("--param-groups takes lr=X and weight_decay=X", value=part)
        found[name] = number
    return found
