"""The names of a model's parameters here and in PyTorch Geometric's models.

    stack.convs.0.lin_l.weight   convs.0.lin_l.weight
    stack.norms.0.weight         norms.0.weight, batch norm's norms.0.module.weight
    stack.convs.0.nn.2.weight    convs.0.nn.lins.1.weight   (GIN)
    stack.head.weight            lin.weight

Layers have the same names on both sides; a model of the user's own keeps all of its.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_STACK = "stack."
_GIN = re.compile(r"(convs\.\d+\.nn\.)(\d+)(\.\w+)")
_NORM = re.compile(r"(norms\.\d+\.)(\w+)")


def outer_names(names: Collection[str]) -> dict[str, str]:
    """PyTorch Geometric's name of each parameter and buffer of one model, given by ours."""
    built_in = any(name.startswith(f"{_STACK}convs.") for name in names)
    return {name: _outer(name, names) if built_in else name for name in names}


def _outer(name: str, names: Collection[str]) -> str:
    if not name.startswith(_STACK):
        return name
    inner = name.removeprefix(_STACK)
    if inner.startswith("head."):
        return inner.replace("head.", "lin.", 1)
    if match := _GIN.fullmatch(inner):
        return f"{match[1]}lins.{int(match[2]) // 2}{match[3]}"  # every second is an activation
    if (match := _NORM.fullmatch(inner)) and f"{_STACK}{match[1]}running_mean" in names:
        return f"{match[1]}module.{match[2]}"
    return inner
