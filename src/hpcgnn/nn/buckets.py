"""Sums of gradients over the ranks that overlap with the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device_sums import choose_device_sums
from hpcgnn.nn.gradients import add_up, gradient
from hpcgnn.nn.linear import is_sharded

_BUCKET = 1 << 17  # least bytes of a bucket; shorter messages cost more than the overlap saves


class GradientSums:
    """The sums over the ranks of the gradients of replicated parameters, as `gradients.add_up`.

    Within `overlapping` they begin during the backward pass. Parameters are then cut into buckets
    in reverse order, in which backward mostly reaches them. A bucket is sent once the gradients of
    its parameters and of all buckets before it are complete: all ranks send in one order,
    whichever gradients each of them computes first. Sums, and the handling of gradients that are
    not finite, are bitwise the same as without overlap. On CPUs only: the host would have to wait
    for a GPU's gradients. These are summed after the pass, by MPI or NCCL.

    Args:
        library: `mpi` or `nccl`, where that is possible.
    """

    def __init__(
        self, parameters: Sequence[Tensor], comm: Communicator, library: str = "mpi"
    ) -> None:
        self._parameters, self._comm = parameters, comm
        device = parameters[0].device if parameters else torch.device("cpu")
        self._on_device = choose_device_sums(comm, device, library)
        learned = [p for p in parameters if p.requires_grad]
        self._sharded = [p for p in learned if is_sharded(p)]
        self._buckets = _cut([p for p in reversed(learned) if not is_sharded(p)])
        self._place = {id(p): i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._overlaps = comm.size > 1 and all(p.device.type == "cpu" for p in learned)
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
        flat = torch.cat([gradient(p).reshape(-1) for p in self._buckets[number]])
        self._comm.background().begin(flat.detach().numpy())

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
