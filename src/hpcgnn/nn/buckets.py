"""Gradients added up over the ranks while backward goes on to those of earlier layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.nn.gradients import add_up
from hpcgnn.nn.linear import is_sharded

_BUCKET = 1 << 17  # bytes at least; shorter messages cost more than they hide


class GradientSums:
    """Adds up the gradients of replicated parameters over the ranks, as `gradients.add_up`.

    Within `overlapping` it begins while backward goes on. Then parameters are cut into buckets in
    the reverse of their order, in which backward mostly reaches them. A bucket is sent once the
    gradients of its parameters and all buckets before it are there: the ranks send in one order,
    whatever each of them reaches first. Sums, and what is done about gradients that are not finite,
    are the same to the bit. On CPUs alone: a GPU's gradients would have to be waited for.
    """

    def __init__(self, parameters: Sequence[Tensor], comm: Communicator) -> None:
        self._parameters, self._comm = parameters, comm
        learned = [p for p in parameters if p.requires_grad]
        self._sharded = [p for p in learned if is_sharded(p)]
        self._buckets = _cut([p for p in reversed(learned) if not is_sharded(p)])
        self._place = {id(p): i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._overlaps = comm.size > 1 and all(p.device.type == "cpu" for p in learned)
        self._missing: list[int] = []
        self._next: int | None = None  # the bucket to be sent next, where the sums overlap

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Around the only backward pass of a step, which starts without gradients; collective."""
        if not self._overlaps:
            yield
            return
        self._missing, self._next = [len(bucket) for bucket in self._buckets], 0
        self._comm.background()
        shared = [p for bucket in self._buckets for p in bucket]
        hooks = [p.register_post_accumulate_grad_hook(self._reached) for p in shared]
        try:
            yield
        except BaseException:
            self._next = None
            self._comm.leave_background()
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _reached(self, parameter: Tensor) -> None:
        self._missing[self._place[id(parameter)]] -= 1
        while self._next is not None and self._next < len(self._buckets):
            if self._missing[self._next] > 0:
                break
            self._send(self._next)
            self._next += 1

    def _send(self, number: int) -> None:
        flat = torch.cat([_gradient(p).reshape(-1) for p in self._buckets[number]])
        self._comm.background().begin(flat.detach().numpy())

    def finish(self) -> bool:
        """Gradients summed; False, with all as they were, where one is not finite. Collective."""
        begun, self._next = self._next, None
        if begun is None:
            return add_up(self._parameters, self._comm)
        for number in range(begun, len(self._buckets)):
            self._send(number)
        # One number more: nan, on all ranks, where a gradient that stays on its rank is not finite.
        flags = [float((p.grad * 0).sum()) for p in self._sharded if p.grad is not None]
        twice = any(missing < 0 for missing in self._missing)
        self._comm.background().begin(np.array([sum(flags), twice], np.float64))
        *totals, flag = self._comm.background().finish("gradients")
        if flag[1]:  # backward ran more than once, after some were sent
            return add_up(self._parameters, self._comm)
        if not all(np.isfinite(total).all() for total in (*totals, flag)):
            return False
        for bucket, total in zip(self._buckets, totals, strict=True):
            parts = torch.from_numpy(total).split([p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        return True


def _gradient(parameter: Tensor) -> Tensor:
    """0 where the loss does not use it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _cut(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive ones that together are large enough; of one type each."""
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
