"""Settings of how remote rows are sent, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.settings import LEAST_BUFFER, Section, free, parse_size


@dataclass(frozen=True)
class StreamingSettings(Section):
    """Settings of the stream of remote rows; they change results by rounding only."""

    mode: str = free(
        "sar", "remote features: freed and rebuilt, kept, or all at once", ("sar", "sa", "oneshot")
    )
    halo_buffer: str = free("256MiB", "memory for remote rows", metavar="SIZE")
    prefetch: int = free(2, "messages posted ahead", least=1, most=1 << 16)
    recompute: bool = free(
        False, "compute activations of hidden layers again in backward in place of keeping them"
    )
    transport: str = free(
        "auto", "how messages leave a GPU", ("auto", "ipc", "staged", "cuda-aware")
    )
    fewest_rows: bool = free(True, "send sums as source rows or partial sums, whichever is less")
    narrow_first: bool = free(True, "multiply by weights before sums that are then narrower")
    cache_first: bool = free(True, "compute sums of the input features once")
    prune: bool = free(True, "skip nodes that reach no labelled node in the remaining layers")

    def check(self) -> None:
        if parse_size(self.halo_buffer) < LEAST_BUFFER:
            raise InputError("--halo-buffer must be at least 4 KiB", value=self.halo_buffer)
