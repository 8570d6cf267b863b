"""Tools for autograd functions: one derivative only, memory reuse, captured tensors and modes."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

Backward = Callable[..., Any]
_LEAVES = {bool, int, float, str, type(None), type(Ellipsis), torch.dtype, torch.device}


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


def on_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `tree_map_only(Tensor, function, value)`, much faster for the usual arguments."""
    kind = type(value)
    if isinstance(value, Tensor):
        return function(value)
    if kind is tuple or kind is list:
        return kind([on_tensors(function, part) for part in value])
    if kind is dict:
        return {name: on_tensors(function, part) for name, part in value.items()}
    return value if kind in _LEAVES else tree_map_only(Tensor, function, value)


class Finder(TorchFunctionMode):
    """A mode, without autograd, that collects tensors that need gradients and aren't `known`."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor) for tensor in known}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        on_tensors(self._see, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _see(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad and id(tensor) not in self._known:
            self.found[id(tensor)] = tensor
        return tensor


class Replacer(TorchFunctionMode):
    """A mode that replaces the given tensors by detached leaves."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        self._leaf = {id(t): leaf for t, leaf in zip(tensors, self.leaves, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._leaf:
            args, kwargs = on_tensors(self._swap, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _swap(self, tensor: Tensor) -> Tensor:
        return self._leaf.get(id(tensor), tensor)


class Originals:
    """Tensors that a function used, to be found again in backward, when the function runs again.

    It then reads the same objects, through modules and enclosing names. With saved-tensor hooks, as
    of `torch.utils.checkpoint` and `save_on_cpu`, autograd returns others with the same values.
    """

    def __init__(self, used: Sequence[Tensor], attributes: Sequence[Tensor] = ()) -> None:
        self._used = [(weakref.ref(tensor), tensor._version) for tensor in used]
        place = {id(tensor): number for number, tensor in enumerate(used)}
        self._places = [place.get(id(tensor)) for tensor in attributes]

    def of(
        self, used: Sequence[Tensor], attributes: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the objects that autograd saved as `used`, and those among the `attributes`.

        Raises:
            RuntimeError: one was changed in place since.
        """
        found = []
        for (original, version), saved in zip(self._used, used, strict=True):
            own = original()
            if own is not None and own._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    "inplace operation"
                )
            found.append(saved if own is None else own)
        pairs = zip(self._places, attributes, strict=True)
        return found, [saved if place is None else found[place] for place, saved in pairs]


class Called:
    """A context that records which modules are called, and whether each is in training mode."""

    def __init__(self) -> None:
        self._training: dict[torch.nn.Module, bool] = {}

    def __enter__(self) -> Called:
        self._hook = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _note(self, module: torch.nn.Module, inputs: object) -> None:
        self._training.setdefault(module, module.training)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the recorded training modes within the context, and the present ones after it."""
        now = [(module, module.training) for module in self._training]
        try:
            for module, training in self._training.items():
                module.training = training
            yield
        finally:
            for module, training in now:
                module.training = training


@dataclass(frozen=True)
class Modes:
    """The training modes of all modules under `root`, and the names of their tensor attributes.

    `given`: their parameters and buffers, which `torch.func.functional_call` replaces for a call.
    """

    root: torch.nn.Module | None
    training: tuple[bool, ...]
    names: tuple[tuple[int, str], ...]
    given: tuple[dict[str, Tensor | None], ...]

    @classmethod
    def of(cls, root: torch.nn.Module | None) -> tuple[Modes, list[Tensor]]:
        """Return the present modes, and the tensors of `names`, for autograd to hold."""
        modules = [] if root is None else list(root.modules())
        names, tensors = [], []
        for number, module in enumerate(modules):
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    names.append((number, name))
                    tensors.append(value)
        given = tuple(_given(module) for module in modules)
        return cls(root, tuple(m.training for m in modules), tuple(names), given), tensors

    @contextmanager
    def restored(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Restore the recorded modes and `tensors` in the context, the present ones after it.

        Buffers then also have the values of before, as a norm's running statistics must count a
        forward pass once.
        """
        modules = [] if self.root is None else list(self.root.modules())
        buffers = [] if self.root is None else list(self.root.buffers())
        values = [buffer.clone() for buffer in buffers]
        now = [(module, dict(vars(module))) for module in modules]
        other = [_given(module) for module in modules]
        try:
            for module, training, given in zip(modules, self.training, self.given, strict=True):
                module.training = training
                _give(module, given)
            for (number, name), tensor in zip(self.names, tensors, strict=True):
                vars(modules[number])[name] = tensor
            yield
        finally:
            for (module, former), given in zip(now, other, strict=True):
                module.training = former["training"]
                _give(module, given)
            with torch.no_grad():
                for buffer, value in zip(buffers, values, strict=True):
                    if not torch.equal(buffer, value):  # torch's norms don't count their changes
                        buffer.copy_(value)
            for number, name in self.names:
                former = now[number][1]
                if name in former:
                    vars(modules[number])[name] = former[name]
                else:
                    vars(modules[number]).pop(name, None)


def _given(module: torch.nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _give(module: torch.nn.Module, given: dict[str, Tensor | None]) -> None:
    """Put these tensors in the places of the module's own parameters and buffers."""
    for own in (module._parameters, module._buffers):
        for name in own.keys() & given.keys():
            own[name] = given[name]  # type: ignore[assignment]
