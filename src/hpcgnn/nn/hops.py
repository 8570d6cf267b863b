"""How far a layer looks: the number of times that a call sums over edges, one after the other."""

from __future__ import annotations

import torch

from hpcgnn.errors import InputError


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
