"""Tensors and modules that a user's function uses: found in forward, put back for backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_LEAVES = {bool, int, float, str, type(None), type(Ellipsis), torch.dtype, torch.device}


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
    `versions`: of the buffers.
    """

    root: torch.nn.Module | None
    training: tuple[bool, ...]
    names: tuple[tuple[int, str], ...]
    given: tuple[dict[str, Tensor | None], ...]
    versions: tuple[int, ...]

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
        training = tuple(module.training for module in modules)
        given = tuple(_given(module) for module in modules)
        versions = tuple(_version(buffer) for module in modules for buffer in _buffers(module))
        return cls(root, training, tuple(names), given, versions), tensors

    @contextmanager
    def restored(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Restore the recorded modes and `tensors` in the context, the present ones after it.

        Buffers then also have the values of before, as a norm's running statistics must count a
        forward pass once.
        """
        modules = [] if self.root is None else list(self.root.modules())
        changing = self._changing(modules)
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
                for buffer, value in changing:
                    buffer.copy_(value)
            for number, name in self.names:
                former = now[number][1]
                if name in former:
                    vars(modules[number])[name] = former[name]
                else:
                    vars(modules[number]).pop(name, None)

    def _changing(self, modules: Sequence[torch.nn.Module]) -> list[tuple[Tensor, Tensor]]:
        """Return the buffers that a call changes, which were changed since, and copies of them.

        The versions of a norm's running statistics don't count what torch's kernels write.
        """
        norm = torch.nn.modules.batchnorm._NormBase
        found = [(b, isinstance(module, norm)) for module in modules for b in _buffers(module)]
        pairs = zip(found, self.versions, strict=False)
        return [(b, b.clone()) for (b, of_norm), old in pairs if of_norm or _version(b) != old]


def _buffers(module: torch.nn.Module) -> list[Tensor]:
    return list(module.buffers(recurse=False))


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


def _given(module: torch.nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _give(module: torch.nn.Module, given: dict[str, Tensor | None]) -> None:
    """Put these tensors in the places of the module's own parameters and buffers."""
    for own in (module._parameters, module._buffers):
        for name in own.keys() & given.keys():
            own[name] = given[name]  # type: ignore[assignment]
