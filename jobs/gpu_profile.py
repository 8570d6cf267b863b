"""Sums up the timeline that `hpcgnn train --profile EPOCHS` wrote on a GPU.

    python jobs/gpu_profile.py RUN/profile/rank-00000.json EPOCHS

prints, per epoch, how long the GPU was busy, the calls that the host made, and the kernels that
took longest, with their number.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")
SHOWN, WIDTH = 20, 90

Event = dict[str, Any]


def of_kinds(events: Iterable[Event], kinds: tuple[str, ...]) -> list[Event]:
    """Return the events that last, of these categories, by their start."""
    found = [one for one in events if one.get("ph") == "X" and one.get("cat") in kinds]
    return sorted(found, key=lambda one: float(one["ts"]))


def busy(events: list[Event]) -> float:
    """Return the microseconds in which at least one of the events lasts."""
    total, end = 0.0, float("-inf")
    for one in events:
        start, stop = float(one["ts"]), float(one["ts"]) + float(one["dur"])
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def lines(events: list[Event], epochs: int) -> Iterable[str]:
    """Return the lines to print; times in milliseconds of an epoch."""
    on_gpu, calls = of_kinds(events, ON_GPU), of_kinds(events, CALLS)
    if not on_gpu:
        yield "no kernels: was this run on a GPU?"
        return
    span = max(float(one["ts"]) + float(one["dur"]) for one in on_gpu) - float(on_gpu[0]["ts"])
    yield (
        f"an epoch: busy {busy(on_gpu) / epochs / 1e3:.2f} of {span / epochs / 1e3:.2f} ms, "
        f"{len(on_gpu) / epochs:.0f} kernels and copies, {len(calls) / epochs:.0f} calls by the "
        f"host in {sum(float(one['dur']) for one in calls) / epochs / 1e3:.2f} ms"
    )
    taken = defaultdict[str, list[float]](list)
    for one in on_gpu:
        taken[str(one["name"]).replace("at::native::", "")[:WIDTH]].append(float(one["dur"]))
    for name, each in sorted(taken.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
        yield f"{sum(each) / epochs / 1e3:9.3f} ms {len(each) / epochs:6.1f} x  {name}"


if __name__ == "__main__":
    for line in lines(json.loads(Path(sys.argv[1]).read_text())["traceEvents"], int(sys.argv[2])):
        print(line)
