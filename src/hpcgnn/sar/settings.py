"""Settings of how remote rows are sent, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.settings import LEAST_BUFFER, Section, free, parse_size


@dataclass(frozen=True)
class StreamingSettings(Section):
    """Settings of the stream of remote rows; they change results by rounding only."""

    mode: str = free(
        "sar",
        "remote features: freed and rebuilt (sar), kept (sa), or all at once (oneshot)",
        ("sar", "sa", "oneshot"),
    )
    halo_buffer: str = free("256MiB", "memory for remote rows", metavar="SIZE")
    prefetch: int = free(2, "messages posted ahead", least=1, most=1 << 16)
    recompute: bool = free(
        False, "recompute activations of hidden layers in backward instead of keeping them"
    )
    transport: str = free(
        "auto", "how messages are sent from a GPU", ("auto", "ipc", "staged", "cuda-aware")
    )
    fewest_rows: bool = free(True, "send source rows or partial sums, whichever are fewer")
    narrow_first: bool = free(
        True, "multiply by weights before summing where that makes rows narrower"
    )
    cache_first: bool = free(True, "compute sums of the input features only once")
    prune: bool = free(True, "skip nodes that can't reach a labelled node in the remaining layers")

    def check(self) -> None:
        if parse_size(self.halo_buffer) < LEAST_BUFFER:
            raise InputError("--halo-buffer must be at least 4 KiB", value=self.halo_buffer)
