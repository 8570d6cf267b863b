"""Common parts of layers: checks of their arguments, their number of hops, their numbers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from hpcgnn.errors import InputError

# Arguments of PyTorch Geometric's base class, with the values that mean what layers here do.
_OF_THE_BASE: dict[str, tuple[object, ...]] = {
    "flow": ("source_to_target",),
    "node_dim": (-2, 0),
    "aggr_kwargs": (None, {}),
}
_MEANINGLESS = ("decomposed_layers",)  # says how to compute, not what


def check_keywords(layer: object, given: dict[str, object], **fixed: tuple[object, ...]) -> None:
    """Raise InputError for an unknown keyword or an unsupported value.

    Args:
        fixed: further keywords with the values that mean what the layer does.
    """
    name = type(layer).__name__
    known = _OF_THE_BASE | fixed
    for key, value in given.items():
        if key in _MEANINGLESS:
            continue
        if key not in known:
            raise InputError(f"{name} has no argument {key}; leave it out", value=value)
        # Types are compared too: 1 == True, and comparing tensors gives no truth value.
        if not any(type(value) is type(one) and value == one for one in known[key]):
            choices = " or ".join(repr(one) for one in known[key])
            raise InputError(f"{name}: {key} can only be {choices}", value=value)


def check_width(layer: object, name: str, value: object, least: int = 0) -> None:
    """Raise InputError unless a width or count is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(
            f"{type(layer).__name__}: {name} must be an integer of at least {least}", value=value
        )


def check_probability(layer: object, p: float) -> None:
    """Raise InputError unless a dropout probability is in [0, 1)."""
    if not 0 <= p < 1:
        raise InputError(f"{type(layer).__name__}: dropout must be in [0, 1)", value=p)


def hops_of(module: torch.nn.Module) -> int | None:
    """Return the module's `hops`, a number or a property; None if it doesn't define it.

    A class that defines `forward` must define `hops` as well: an inherited `hops` is ignored.
    """
    found: object = None
    if "hops" in vars(module):
        found = vars(module)["hops"]
    else:
        for kind in type(module).__mro__:
            if "hops" in vars(kind):
                found = module.hops
                break
            if "forward" in vars(kind):
                break
    if found is not None and (not isinstance(found, int) or found < 0):
        raise InputError(f"{type(module).__name__}: hops must be at least 0", value=found)
    return found


def numbered(model: torch.nn.Module) -> list[Any]:
    """Return the layers of `model` whose `layer` was drawn by `layer_number`, in module order."""
    return [
        module
        for module in model.modules()
        if type(module.__dict__.get("layer")) is int and module.__dict__["layer"] >= FIRST
    ]


FIRST = 1 << 21  # above the numbers that models of this package assign


def layer_number(layer: int | None) -> int:
    """Return `layer`, or a number drawn from torch's generator, as weights are.

    The number is the same on all ranks, and in every run, if the model's initial weights are.
    """
    if layer is not None:
        return layer
    return int(torch.randint(FIRST, 2**31, (), device="cpu"))
