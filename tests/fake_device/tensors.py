"""Tensors of the fake device, and torch's operations on them."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
)


_FUSED = (_aten._fused_adam_.default, _aten._fused_adamw_.default)
_WAITING = (
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.bincount,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.equal,
)
_NO_LAUNCH = ("detach", "alias", "lift_fresh", "_unsafe_view", "_local_scalar_dense")


@cache
def is_launch(func: Any) -> bool:
    """Return whether this operation launches GPU work: not for views or new memory."""
    name = func.overloadpacket.__name__
    return not (func.is_view or "empty" in name or name in _NO_LAUNCH)


class FakeTensor(Tensor):
    """A tensor on the fake device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeTensor:
        made: FakeTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:  # torch refuses it for subclasses
        FakeDevice.waits.append("tolist")
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"FakeTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FakeDevice(TorchDispatchMode):
    """While it is entered, `device="cuda:0"` makes fake tensors.

    Attributes:
        rehearsed: kernels that were launched in the latest rehearsal; None without one.
        late: kernels that were launched after it, and not in it.
        waits: operations for which the host would have waited until the GPU was done.
        launched: operations that would have run on a GPU, except copies from and to the host.
    """

    waits: ClassVar[list[str]] = []
    launched: ClassVar[list[str]] = []
    rehearsed: ClassVar[set[str] | None] = None
    late: ClassVar[set[str]] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch loads its compiler, which takes seconds in each process

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def inner(value: Any) -> Any:
    """Return a value for torch's own operations, also inside tuples, lists and dictionaries."""
    kind = type(value)
    if isinstance(value, FakeTensor):
        return value.inner
    if kind is tuple or kind is list:
        return kind([inner(item) for item in value])
    if kind is dict:
        return {name: inner(item) for name, item in value.items()}
    return value


def outer(value: Any) -> Any:
    """Return a result as a value on the fake device."""
    if isinstance(value, Tensor):
        return FakeTensor(value)
    if isinstance(value, tuple | list):
        return type(value)([outer(item) for item in value])
    return value


def _tensors(values: Any, found: list[Tensor]) -> None:
    """Add the tensors among arguments, and in their tuples and lists, to `found`."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            _tensors(value, found)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    _tensors(args, tensors)
    _tensors(kwargs.values(), tensors)
    fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
    if fake:
        _refuse_mixture(func, args, tensors)
    wanted = kwargs.get("device")
    on_device = fake if wanted is None else torch.device(wanted).type == DEVICE.type
    if func is _aten.copy_.default:
        on_device = isinstance(args[0], FakeTensor)
    copies = func in _COPIES
    crosses = _is_mixture(tensors) or (copies and fake != on_device)
    asynchronous = copies and (kwargs.get("non_blocking") or True in args[2:])
    if (crosses and not asynchronous) or (fake and _waits(func, args)):
        FakeDevice.waits.append(str(func))
    if on_device and is_launch(func) and not (copies and crosses):
        FakeDevice.launched.append(func.overloadpacket.__name__)
    plain = dict(kwargs)
    if wanted is not None:
        plain["device"] = torch.device("cpu")
    if plain.get("pin_memory"):
        plain["pin_memory"] = False
    result = func(*inner(args), **inner(plain))
    if not on_device:
        return result
    result = outer(result)
    return return_and_correct_aliasing(func, args, kwargs, result) if fake else result


def _waits(func: Any, args: Any) -> bool:
    """Return whether the host needs a result of the GPU to continue."""
    if func in _INDEXING:
        masks = (torch.bool, torch.uint8)
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        return any(index.dtype in masks for index in indices)
    return func.overloadpacket in _WAITING


def _is_mixture(tensors: list[Tensor]) -> bool:
    """Return whether arrays of host and GPU are mixed; single numbers go with the launch."""
    return len({isinstance(tensor, FakeTensor) for tensor in tensors if tensor.dim()}) == 2


def _refuse_mixture(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse mixtures as CUDA does: single numbers and indices may come from the host."""
    alone = func in _FUSED  # these read single numbers on the GPU, too
    host = [t for t in tensors if not isinstance(t, FakeTensor) and (t.dim() or alone)]
    if not host or func in _COPIES:
        return
    indices = all(not tensor.is_floating_point() for tensor in host)
    if func in _INDEXING and isinstance(args[0], FakeTensor) and indices:
        return
    shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
    raise RuntimeError(f"{func} was given tensors of the host and of the GPU: {shapes}")
