"""Activations that are dropped and computed again in backward (Chen et al. 2016).

As `torch.utils.checkpoint` with `use_reentrant=False`, which loads torch's compiler (57 MB and one
second on each rank) and doesn't know our dropout masks or the statistics of norms.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.captured import Called

_SAMPLE = 64


def recomputed(
    graph: PartitionedGraph,
    function: Callable[[Any], Tensor],
    x: NodeFeatures,
    *modules: torch.nn.Module,
) -> Tensor:
    """Return `function(x)`, keeping only `x` for backward; collective if `function` is.

    Backward first calls the function once more, with the same epoch, precision and random numbers.
    The order of messages is that of a run without recomputation; gradients are equal bit for bit.
    Modules are in the training modes of the first call. RuntimeError is raised if weights or rows
    were changed in place since, or if the function returns something else.

    Args:
        function: of rows `[n, F]`; deterministic, and without side effects except on buffers of
            `modules`, which keep the values of the first call.
    """
    if not torch.is_grad_enabled():
        return function(x)
    call = _Call(graph, function, x, modules)
    with saved_tensors_hooks(call.forget, call.find), graph.execution.forgetting(), call.called:
        found = function(x)
    call.note(found, x)
    return found


class _Input(torch.autograd.Function):
    """Saves rows through autograd, so that saved-tensor hooks of the caller see them."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, x_NF: Tensor) -> Tensor:
        ctx.save_for_backward(x_NF)
        return torch.empty_like(leaf)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _Call:
    """A call whose saved tensors are replaced by numbers."""

    def __init__(
        self,
        graph: PartitionedGraph,
        function: Callable[[Any], Tensor],
        x: NodeFeatures,
        modules: tuple[torch.nn.Module, ...],
    ) -> None:
        self.graph, self.function, self.modules = graph, function, modules
        changes = isinstance(x, Tensor) and x.requires_grad
        self.constant = None if changes else x
        if isinstance(x, Tensor) and changes:
            self.held = _Input.apply(torch.empty(0, requires_grad=True), x.detach())
        self.epoch, self.count = graph.epoch, 0
        self.found: dict[int, tuple[Tensor, int | None]] = {}
        self.called = Called()
        self.versions: list[tuple[weakref.ref[Tensor], int]] = []
        if isinstance(self.constant, Tensor):
            self.versions.append((weakref.ref(self.constant), self.constant._version))
        self.on_gpu = graph.node_ids.device.type == "cuda"
        self.precision = _precision(graph.node_ids.device.type)
        self.random = torch.get_rng_state()
        self.gpu_random = torch.cuda.get_rng_state(graph.node_ids.device) if self.on_gpu else None

    def forget(self, tensor: Tensor) -> tuple[_Call, int]:
        self.count += 1
        whole = tensor if tensor._base is None else tensor._base
        if whole.is_leaf:
            self.versions.append((weakref.ref(whole), whole._version))
        return self, self.count - 1

    def note(self, found: Tensor, x: NodeFeatures) -> None:
        """Record what must be unchanged in backward: versions of leaf tensors, and some results."""
        self.sample = _sample(found)
        # Stop at x: leaves before it are not read by this function.
        seen: set[Any] = {getattr(x, "grad_fn", None), None}
        queue: list[Any] = [found.grad_fn]
        while queue:
            node = queue.pop()
            if node in seen:
                continue
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                self.versions.append((weakref.ref(leaf), leaf._version))

    @staticmethod
    def find(place: tuple[_Call, int]) -> Tensor:
        """Return the recomputed tensor of this number; each is returned once and then released."""
        call, number = place
        if number not in call.found:
            call._again()
        tensor, version = call.found.pop(number)
        if version not in (None, tensor._version):
            raise _changed()
        return tensor

    def _again(self) -> None:
        device, x = self.graph.node_ids.device, self.constant
        leaves = ((leaf(), version) for leaf, version in self.versions)
        if any(leaf is not None and leaf._version != version for leaf, version in leaves):
            raise _changed()
        if x is None:
            (x_NF,) = self.held.grad_fn.saved_tensors
            x = x_NF.detach().requires_grad_()
        self.found = {}
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[device] if self.on_gpu else []))
            torch.set_rng_state(self.random)
            if self.gpu_random is not None:
                torch.cuda.set_rng_state(self.gpu_random, device)
            stack.enter_context(self.precision())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.graph.execution.as_in(self.epoch))
            stack.enter_context(saved_tensors_hooks(self._keep, _none))
            stack.enter_context(self.called.restored())
            buffers = [b for module in self.modules for b in module.buffers()]
            values = [buffer.clone() for buffer in buffers]
            again = self.function(x)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
        self.graph.execution.newest = None
        if len(self.found) != self.count or not _alike(_sample(again), self.sample):
            raise RuntimeError(
                "hpcgnn: the result recomputed in backward differs from the first: a function of "
                "nn.recomputed must give the same result each time"
            )

    def _keep(self, tensor: Tensor) -> None:
        version = None if tensor.is_leaf else tensor._version
        self.found[len(self.found)] = tensor.detach(), version


def _sample(found: Tensor) -> Tensor:
    """Return a sample of its values."""
    step = max(1, found.numel() // _SAMPLE)
    with torch.no_grad():
        return found.take(torch.arange(0, found.numel(), step, device=found.device)).float()


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether both agree up to rounding, which differs where a GPU adds in any order."""
    if found.shape != expected.shape:
        return False
    sizes = expected.nan_to_num(posinf=0, neginf=0).abs()
    limit = 1e-2 * float(sizes.max()) if len(sizes) else 0.0
    return bool(torch.isclose(found, expected, rtol=0, atol=limit, equal_nan=True).all())


def _changed() -> RuntimeError:
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace "
        "operation, before nn.recomputed ran its function again in backward"
    )


def _none(nothing: None) -> Tensor:
    raise RuntimeError("hpcgnn: a result recomputed in backward was itself differentiated")


def _precision(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a function that enters autocast as it is set now."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
