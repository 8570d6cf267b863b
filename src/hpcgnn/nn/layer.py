"""What layers have in common: their keywords, how far they look, how they are told apart."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from hpcgnn.errors import InputError

# What its layers take from their base class, and the values that mean what is done here anyway.
_OF_THE_BASE: dict[str, tuple[object, ...]] = {
    "flow": ("source_to_target",),
    "node_dim": (-2, 0),
    "aggr_kwargs": (None, {}),
}
_MEANINGLESS = ("decomposed_layers",)  # says how to compute, not what


def check_keywords(layer: object, given: dict[str, object], **fixed: tuple[object, ...]) -> None:
    """Raise InputError for a keyword that isn't known, or has a value that isn't supported.

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
        # By type too: 1 == True, and a tensor's comparison is no truth value.
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
    """What the module says in `hops`: a number or a property; None where it doesn't say.

    A class with a `forward` of its own speaks for itself: what it inherits doesn't count.
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
        raise InputError(f"{type(module).__name__}: hops must be a number from 0", value=found)
    return found


def numbered(model: torch.nn.Module) -> list[Any]:
    """The layers of `model` whose `layer` was drawn by `layer_number`, in the module's order."""
    return [
        module
        for module in model.modules()
        if type(module.__dict__.get("layer")) is int and module.__dict__["layer"] >= FIRST
    ]


FIRST = 1 << 21  # above the numbers that models of this package give


def layer_number(layer: int | None) -> int:
    """`layer`, or a number drawn from torch's generator, as weights are.

    So it is the same on all ranks, and in every run, where the model's first weights are.
    """
    if layer is not None:
        return layer
    return int(torch.randint(FIRST, 2**31, (), device="cpu"))
