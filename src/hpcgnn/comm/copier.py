"""Copies between a GPU and pinned host memory, on streams of their own."""

from __future__ import annotations

import torch
from torch import Tensor


class CudaCopier:
    """Two copy streams, one per direction, beside the stream that kernels run on.

    Kernels are those of torch's current stream at each call.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._outward = torch.cuda.Stream(device)
        self._inward = torch.cuda.Stream(device)

    def near(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def wire(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def to_wire(self, wire: Tensor, near: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        return self._copy(self._outward, wire, near, after)

    def to_near(self, near: Tensor, wire: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        landed = self._copy(self._inward, near, wire, after)
        torch.cuda.current_stream(self.device).wait_event(landed)
        return landed

    def _copy(
        self, stream: torch.cuda.Stream, to: Tensor, source: Tensor, after: torch.cuda.Event
    ) -> torch.cuda.Event:
        with torch.cuda.stream(stream):
            stream.wait_event(after)
            to.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        return event
