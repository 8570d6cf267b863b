"""Tools for autograd functions: one derivative only, gradients of parts, memory reuse."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


def first_order(backward: Backward) -> Backward:
    """Decorate the `backward` of an autograd function: differentiating it raises RuntimeError.

    torch's `once_differentiable` raises only if the gradients of all leaves are asked for; a second
    derivative with respect to a single named tensor is not caught, and is wrong.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Any:
        if not torch.is_grad_enabled():
            with _changes_explained():
                return backward(ctx, *grads)
        known = (*grads, *ctx.saved_tensors)
        anchors = [t for t in known if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad(), _changes_explained():
            found = backward(ctx, *grads)
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


@contextmanager
def _changes_explained() -> Iterator[None]:
    """Adds to torch's error of a saved tensor that was changed what to do here."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "in backward a layer of hpcgnn reads its input, and attention also its output, but one "
            "of these was changed in place: before and after the layer use operations that make a "
            "new tensor (torch.relu(x) for relu_ and ReLU(inplace=True), y = y + b for y += b). "
            f"torch says: {error}"
        ) from None


class _Refusal(torch.autograd.Function):
    """Returns the first `count` tensors, which then depend on all; its backward raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "a layer of hpcgnn was differentiated twice, which its backward doesn't support: leave "
            "out create_graph, or compute this penalty without second derivatives"
        )


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `inputs`, None where one isn't used; `grads` are those of `outputs`.

    `torch.autograd.grad` does the same, but loads SymPy, for a second, to compare shapes.
    """
    with torch.enable_grad():
        root = _Root.apply(tuple(grads), *outputs)
    return torch.autograd.grad(root, inputs, allow_unused=True)


class _Root(torch.autograd.Function):
    """A number whose backward gives each output its gradient."""

    @staticmethod
    def forward(ctx: Any, grads: tuple[Tensor, ...], *outputs: Tensor) -> Tensor:
        ctx.grads = grads
        return outputs[0].new_zeros(())

    @staticmethod
    @first_order
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.grads


def last_saved(ctx: Any) -> tuple[tuple[Any, ...], bool]:
    """Return what an autograd function saved, and whether backward holds the only references.

    If so, each array is freed when its last name is deleted; autograd itself would hold all of
    them until backward ends. That is not the case if the graph is retained for another backward.
    """
    saved: tuple[Any, ...] = ctx.saved_tensors
    forget = getattr(ctx, "maybe_clear_saved_tensors", None)  # torch decides whether it can
    if forget is None:
        return saved, False
    forget()
    try:
        _ = ctx.saved_tensors
    except RuntimeError:
        return saved, True
    return saved, False


def is_own(grads: tuple[Tensor, ...]) -> bool:
    """Return whether a backward may overwrite its gradient: no hook or other branch refers to it.

    Args:
        grads: the tuple that backward received, which must hold its only reference to them.
    """
    fewest = _fewest_holders()
    # Overlapping rows, as in expanded tensors, can't be written separately.
    own = fewest is not None and _holders(grads) == fewest.of_gradient
    return own and grads[0].is_contiguous()


def let_go(grad: Tensor) -> None:
    """Free a gradient that `is_own`, which autograd would hold until backward ends."""
    grad.set_(grad.new_empty(0))  # type: ignore[call-overload]


def is_spare(x: Tensor) -> bool:
    """Return whether a backward may overwrite `x`, a previous layer's output that it alone saved.

    Args:
        x: as returned by `last_saved`, with no other reference.
    """
    fewest = _fewest_holders()
    alone = fewest is not None and _holders((x,)) == fewest.of_saved
    return alone and x.grad_fn is not None and x.is_contiguous()


Holders = tuple[int, int, int]


@dataclass(frozen=True)
class _Fewest:
    """Least reference counts of a gradient passed between two backwards, and of a saved tensor."""

    of_gradient: Holders
    of_saved: Holders


def _holders(tensors: tuple[Tensor, ...]) -> Holders:
    storage = tensors[0].untyped_storage()._cdata
    shared = torch._C._storage_Use_Count(storage)
    own = tensors[0]._use_count()  # type: ignore[attr-defined]
    return own, sys.getrefcount(tensors[0]), shared


@cache
def _fewest_holders() -> _Fewest | None:
    """Return the least reference counts; None if this torch can't count references."""
    found: list[_Fewest] = []
    with torch.enable_grad():
        leaf = torch.zeros((), requires_grad=True)
        try:
            _Counted.apply(_Counted.apply(leaf, found), found).backward()
        except AttributeError:
            return None
    return _Fewest(found[1].of_gradient, found[0].of_saved)


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list[_Fewest]) -> Tensor:
        ctx.found = found
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), _ = last_saved(ctx)
        ctx.found.append(_Fewest(_holders(grads), _holders_of_saved(x)))
        return torch.ones_like(grads[0]), None


def _holders_of_saved(x: Tensor) -> Holders:
    """Return the counts as `is_spare` does, with equally many references to x."""
    return _holders((x,))
