"""Finding where numbers stopped being finite: the rank and the layer or parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.gradients import first_not_finite

_MOST = 4  # ranks named


def first_layer(model: torch.nn.Module, comm: Communicator, call: Callable[[], object]) -> str:
    """Repeat a forward pass and return the layer whose output was first not finite; collective.

    Args:
        call: runs the pass.

    Returns:
        `layer 2 (stack.convs.1) on rank 3`, or several ranks; "the loss" if the model's output is
        finite.
    """
    calls: list[tuple[str, bool]] = []

    def watch(name: str) -> Any:
        def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            finite = not isinstance(output, Tensor) or bool(torch.isfinite(output).all())
            calls.append((name, finite))

        return note

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(watch(name)).remove)
        call()
    bad = [place for place, (_, finite) in enumerate(calls) if not finite]
    first_P = comm.allgather(min(bad, default=len(calls)), where="not finite")
    first = min(first_P)
    if first == len(calls):
        return "the loss"
    # Several, if the layer itself sends rows on from the rank where it began.
    ranks = [str(rank) for rank, place in enumerate(first_P) if place == first]
    more = f" and {len(ranks) - _MOST} more" if len(ranks) > _MOST else ""
    plural = "s" if len(ranks) > 1 else ""
    return f"{_named(calls[first][0])} on rank{plural} {', '.join(ranks[:_MOST])}{more}"


def first_gradient(graph: PartitionedGraph, parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return the parameter whose gradient is not finite on the lowest rank; collective.

    If there are several, the last one, which backward reaches first.
    """
    found = first_not_finite(parameters, graph.ring.comm)
    return "the sum over the ranks" if found is None else f"{_named(found[0])} on rank {found[1]}"


def _named(name: str) -> str:
    layer = re.search(r"convs\.(\d+)", name)
    return f"layer {int(layer.group(1)) + 1} ({name})" if layer else name
