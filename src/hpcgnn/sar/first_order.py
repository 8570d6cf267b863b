"""Refusing second derivatives of functions whose backward autograd can't see into."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


def first_order(backward: Backward) -> Backward:
    """Decorates the `backward` of an autograd function: differentiating it raises RuntimeError.

    torch's `once_differentiable` raises only where gradients of all leaves are asked for; a second
    derivative by one named tensor passes it by and is wrong.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        known = (*grads, *ctx.saved_tensors)
        anchors = [t for t in known if isinstance(t, Tensor) and t.requires_grad]
        single = isinstance(found, Tensor)
        results = [found] if single else list(found)
        places = [i for i, value in enumerate(results) if isinstance(value, Tensor)]
        if not anchors or not places:
            return found
        guarded = _Refusal.apply(len(places), *(results[i] for i in places), *anchors)
        for i, value in zip(places, guarded, strict=True):
            results[i] = value
        return results[0] if single else tuple(results)

    return run


class _Refusal(torch.autograd.Function):
    """Hands the first `count` tensors on; they depend on all."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "a layer of hpcgnn was differentiated twice, which its backward can't serve: leave out "
            "create_graph, or compute this penalty without second derivatives"
        )
