"""PyTorch Geometric's keyword arguments that change nothing here, and those that can't be had."""

from __future__ import annotations

from numbers import Integral

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
