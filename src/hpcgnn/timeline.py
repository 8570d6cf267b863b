"""Named spans of time in the profile of a run; next to nothing while none is taken."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_NOTHING = nullcontext()


def profiled() -> bool:
    """Whether torch's profiler runs."""
    return bool(torch.autograd._profiler_enabled())


def span(name: str) -> AbstractContextManager[object]:
    """`with span("ring wait")`: the block's time in the profile, if one is being taken."""
    return torch.profiler.record_function(name) if profiled() else _NOTHING
