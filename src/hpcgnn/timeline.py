"""Named time spans in the profile of a run; nearly free while no profile is taken."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_NOTHING = nullcontext()


def profiled() -> bool:
    """Return whether torch's profiler is running."""
    return bool(torch.autograd._profiler_enabled())


def span(name: str) -> AbstractContextManager[object]:
    """Return a context, as in `with span("ring wait")`, that is timed if a profile is taken."""
    return torch.profiler.record_function(name) if profiled() else _NOTHING
