"""Sums of gradients over the ranks that overlap with the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device_sums import choose_device_sums
from hpcgnn.comm.transport.staged import Copier, CudaCopier
from hpcgnn.nn.gradients import add_up, gradient
from hpcgnn.nn.linear import is_sharded

_ALIGNED = 8  # bytes at whose multiples the numbers of a bucket begin
_BUCKET = 1 << 17  # least bytes of a bucket; shorter messages cost more than the overlap saves


@dataclass
class _Message:
    """The gradients of a bucket side by side, on their way from a GPU to the host.

    `landed`: the event after which `wire`, on the host, holds those of `near`.
    """

    near: Tensor
    wire: Tensor
    landed: Any


class GradientSums:
    """The sums over the ranks of the gradients of replicated parameters, as `gradients.add_up`.

    They are those of the parameters that require a gradient when a step begins.

    Within `overlapping` they begin during the backward pass. Parameters are then cut into buckets
    in reverse order, in which backward mostly reaches them. A bucket is sent once the gradients of
    its parameters and of all buckets before it are complete: all ranks send in one order,
    whichever gradients each of them computes first. Sums, and the handling of gradients that are
    not finite, are bitwise the same as without overlap.

    The gradients of a GPU are copied to the host beside its kernels, and MPI begins to sum those
    that have arrived whenever backward reaches another parameter; the host waits at the end only.
    NCCL sums after the pass: while its kernels wait for another rank, that rank may wait for a
    message of a layer that this GPU could not send, and an error of one rank would leave them
    waiting.

    Args:
        library: `mpi` or `nccl`, where that is possible.
        copier: copies the gradients to the host; None: `CudaCopier` for those of a GPU.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        comm: Communicator,
        library: str = "mpi",
        copier: Copier | None = None,
    ) -> None:
        self._parameters, self._comm = parameters, comm
        device = parameters[0].device if parameters else torch.device("cpu")
        self._on_device = choose_device_sums(comm, device, library)
        self._overlaps = comm.size > 1 and self._on_device is None
        self._overlaps = self._overlaps and all(p.device == device for p in parameters)
        on_gpu = self._overlaps and device.type == "cuda"
        self._copier = CudaCopier(device) if on_gpu and copier is None else copier
        self._learns: list[bool] = []  # of each parameter
        self._sharded: list[Tensor] = []
        self._buckets: list[list[Tensor]] = []
        self._place: dict[int, int] = {}
        self._wires: list[Tensor] = []
        self._messages: list[_Message] = []
        self._begun = 0  # of these
        self._missing: list[int] = []
        self._next: int | None = None  # the bucket to be sent next; None without overlap

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Overlap the sums with the only backward pass of a step; collective.

        The step must start without gradients.
        """
        if not self._overlaps:
            yield
            return
        self._arrange()
        self._missing, self._next = [len(bucket) for bucket in self._buckets], 0
        self._messages, self._begun = [], 0
        if self._copier is not None and not self._wires:
            self._wires = _wires(self._copier, self._buckets)
        self._comm.background()
        shared = [p for bucket in self._buckets for p in bucket]
        hooks = [p.register_post_accumulate_grad_hook(self._reached) for p in shared]
        try:
            yield
        except BaseException:
            self._next = None
            self._messages, self._wires = [], []  # MPI may still read them
            self._comm.leave_background()
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _arrange(self) -> None:
        """Cut the parameters into buckets, if others than before require a gradient."""
        learns = [p.requires_grad for p in self._parameters]
        if learns == self._learns:
            return
        self._learns, self._wires = learns, []
        learned = [p for p in self._parameters if p.requires_grad]
        self._sharded = [p for p in learned if is_sharded(p)]
        self._buckets = _cut([p for p in reversed(learned) if not is_sharded(p)])
        self._place = {id(p): i for i, bucket in enumerate(self._buckets) for p in bucket}

    def _reached(self, parameter: Tensor) -> None:
        self._missing[self._place[id(parameter)]] -= 1
        while self._next is not None and self._next < len(self._buckets):
            if self._missing[self._next] > 0:
                break
            self._send(self._next)
            self._next += 1
        self._begin_landed()

    def _send(self, number: int) -> None:
        flat = torch.cat([gradient(p).reshape(-1) for p in self._buckets[number]]).detach()
        if self._copier is None:
            self._comm.background().begin(flat.numpy())
        else:
            self._copy(flat, self._wires[number])

    def _copy(self, near: Tensor, wire: Tensor) -> None:
        """Start to copy numbers to the host, where MPI will sum them."""
        copier = self._copier
        if copier is not None:
            ends = wire.view(torch.uint8), near.view(torch.uint8)
            self._messages.append(_Message(near, wire, copier.to_wire(*ends, copier.mark())))

    def _begin_landed(self) -> None:
        """Begin the sums of what has arrived on the host, in the order in which it was sent."""
        while self._begun < len(self._messages) and self._messages[self._begun].landed.query():
            self._comm.background().begin(self._messages[self._begun].wire.numpy())
            self._begun += 1

    def _land(self) -> None:
        """Wait for the gradients that are still under way to the host, and begin their sums."""
        self._begin_landed()
        under_way = self._messages[self._begun :]
        if self._copier is not None and under_way:
            self._copier.wait(under_way[-1].landed)
            for message in under_way:  # which on a GPU have landed by then: copies are in order
                if not message.landed.query():
                    self._copier.wait(message.landed)
            self._begin_landed()

    def finish(self) -> bool:
        """Finish the sums; return False, with no gradient changed, if one is not finite.

        Collective.
        """
        begun, self._next = self._next, None
        if begun is None:
            return add_up(self._parameters, self._comm, self._on_device)
        for number in range(begun, len(self._buckets)):
            self._send(number)
        # One more number: NaN, on all ranks, if a gradient that stays on its rank is not finite.
        flags = [(p.grad * 0).sum() for p in self._sharded if p.grad is not None]
        own = 0.0
        if self._copier is None:
            own = sum(map(float, flags))
        elif self._sharded:
            zero = torch.zeros(1, dtype=torch.float64, device=self._sharded[0].device)
            self._copy(sum(flags, zero), self._wires[-1])
        self._land()
        twice = any(missing < 0 for missing in self._missing)
        self._comm.background().begin(np.array([own, twice], np.float64))
        *totals, flag = self._comm.background().finish("gradients")
        if flag[1]:  # backward ran more than once, after some were sent: so it may in the next step
            self._overlaps, self._messages = False, []
            return add_up(self._parameters, self._comm)
        if not all(np.isfinite(total).all() for total in (*totals, flag)):
            return False
        self._set(totals)
        return True

    def _set(self, totals: Sequence[np.ndarray]) -> None:
        """Give the parameters their gradients from the buckets' sums."""
        for number, bucket in enumerate(self._buckets):
            flat = torch.from_numpy(totals[number])
            if self._messages:
                message = self._messages[number]
                message.wire.copy_(flat)
                flat = message.near.copy_(message.wire, non_blocking=True)
            parts = flat.split([p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        self._messages = []


def _wires(copier: Copier, buckets: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return memory of the host for the gradients of each bucket, and for one more number."""
    sizes = [sum(p.nbytes for p in bucket) for bucket in buckets] + [_ALIGNED]
    begins = [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
    whole = copier.wire(begins[-1])
    kinds = [bucket[0].dtype for bucket in buckets] + [torch.float64]
    places = zip(begins, sizes, kinds, strict=False)
    return [whole[begin : begin + size].view(kind) for begin, size, kind in places]


def _cut(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return buckets of consecutive parameters, of one dtype and large enough together."""
    buckets: list[list[Tensor]] = []
    size = _BUCKET
    for parameter in parameters:
        fits = bool(buckets) and buckets[-1][0].dtype == parameter.dtype
        if size >= _BUCKET or not fits:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets
