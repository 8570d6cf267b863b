"""torch's optimizers without its compiler, which each of them loads at its first use.

`torch._dynamo` takes more than a second and 57 MB on every rank, and nothing here is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer


def _step(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step without torch's wrappers, except that it computes no gradients."""
    return torch.no_grad()(unwrap(method))


class _Plain(Optimizer):
    """The base methods of torch's optimizers, without torch's wrappers."""

    add_param_group = unwrap(Optimizer.add_param_group)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    state_dict = unwrap(Optimizer.state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)


class PlainAdam(_Plain, Adam):
    """`torch.optim.Adam` without the compiler."""

    step = _step(Adam.step)


class PlainAdamW(_Plain, AdamW):
    """`torch.optim.AdamW` without the compiler."""

    step = _step(AdamW.step)


class PlainSGD(_Plain, SGD):
    """`torch.optim.SGD` without the compiler."""

    step = _step(SGD.step)


def load_compiler() -> None:
    """Load torch's compiler now; other optimizers load it in training, whose memory is measured."""
    import torch._dynamo  # noqa: F401
