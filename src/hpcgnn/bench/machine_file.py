"""The text of a machine file, from what `bench machine` measured.

`train.plan.machine` reads it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch

from hpcgnn.bench.calibration import Factors
from hpcgnn.errors import printable
from hpcgnn.train.plan.machine import KERNELS, SIZES

_MOST_ROW = 0.8  # of the time measured may be that of rows instead of edges

Rate = tuple[float, float]  # per second: on one rank alone, and on all at once


@dataclass(frozen=True)
class MeasuredRates:
    """What was measured: rates (of a rank alone, of all at once), and seconds of messages."""

    widths: tuple[int, ...]
    rows_of: dict[str, int]  # rows gathered from
    degree: dict[str, int]  # edges of each of these rows
    messages: tuple[int, ...]  # bytes
    rates: dict[Hashable, Rate]
    steps: Rate
    inside: list[float]
    between: list[float]


@dataclass(frozen=True)
class Surroundings:
    """Where it was measured."""

    name: str
    source: str
    device: torch.device
    per_node: int
    full_speed: int
    memory: int

    @property
    def waits(self) -> float:
        """Ranks that share a core, at least 1."""
        return max(1.0, self.per_node / self.full_speed)


def text(place: Surroundings, measured: MeasuredRates, alone: Factors, at_once: Factors) -> str:
    """Return the machine file; rates are divided by what an epoch takes over them."""
    rates, widths, waits = measured.rates, measured.widths, place.waits
    rows, step = rates["rows"], measured.steps
    host = rates["host"][1] if "host" in rates else rows[0] / alone.others
    others, gathers = at_once.others / alone.others, at_once.gathers / alone.gathers
    crowd = {
        "products": _ratio((rates["product", w] for w in widths), waits, others),
        "gathers": _ratio((rates[k, "many", w] for k in KERNELS for w in widths), waits, gathers),
        "rows": _ratio([rows], waits, others),
        "steps": _ratio([step], waits, others),
    }
    lines = [
        f"name = {_quoted(place.name)}",
        f"source = {_quoted(place.source)}",
        f'device = "{place.device.type}"',
        f'memory_per_rank = "{place.memory >> 20}MiB"',
        f"ranks_per_node = {place.per_node}",
        f"full_speed = {place.full_speed}  # ranks of a node with cores of their own",
        "",
        "# Whole epochs took so many times what their gathers, and their other work, had taken in",
        "# short measurements, which the numbers below have been corrected by:",
        f"# one rank {alone.gathers:.2f} and {alone.others:.2f}, "
        f"all at once {at_once.gathers:.2f} and {at_once.others:.2f}",
        f"rows = {rows[0] / alone.others:.4g}  # bytes per second of passes over rows",
        f"host = {host:.4g}  # bytes per second from the host's memory",
        f"step_seconds = {alone.others / step[0]:.3g}  # of a layer's pass over next to nothing",
        "",
        "[products]  # FLOP/s by the width of square weights",
        f"widths = {list(widths)}",
        f"flops = {_list(rates['product', w][0] / alone.others for w in widths)}",
        "",
        "[crowd]  # seconds of each of full_speed ranks at once over those of one alone",
        *(f"{key} = {value:.3f}" for key, value in crowd.items()),
        "",
        "[gathers]  # numbers per second, by width, from few, some and many rows, without what",
        "# each row of the result takes besides its edges: row_seconds",
        *(f"{size}_rows = {measured.rows_of[size]}" for size in SIZES),
        *_gathers(measured, alone.gathers),
    ]
    for name, seconds in (("inside", measured.inside), ("between", measured.between)):
        lines += ["", f"[messages.{name}]", f"bytes = {list(measured.messages)}"]
        lines.append(f"seconds = {_list(seconds)}")
    return "\n".join(lines) + "\n"


def _gathers(measured: MeasuredRates, factor: float) -> list[str]:
    """Return the tables of the kernels that gather; epochs take `factor` times their rates."""
    lines = []
    for kernel in KERNELS:
        lines += ["", f"[gathers.{kernel}]", f"widths = {list(measured.widths)}"]
        found = (_edges_and_row(measured, kernel, width) for width in measured.widths)
        curves, row = zip(*found, strict=True)
        for size, curve in zip(SIZES, zip(*curves, strict=True), strict=True):
            lines.append(f"{size} = {_list(rate / factor for rate in curve)}")
        lines.append(f"row_seconds = {_list(second * factor for second in row)}")
    return lines


def _edges_and_row(measured: MeasuredRates, kernel: str, width: int) -> tuple[list[float], float]:
    """Return numbers per second from rows of each of `SIZES`, and the seconds of a row.

    The time of an edge is that of its numbers plus the row's share. From few rows it was measured
    with two numbers of edges per row; a row is taken to cost the same among more.
    """
    degree = measured.degree
    times = {size: width / measured.rates[kernel, size, width][0] for size in degree}
    row = (times["few"] - times["long"]) / (1 / degree["few"] - 1 / degree["long"])
    row = min(max(row, 1e-12), _MOST_ROW * min(times[size] * degree[size] for size in SIZES))
    return [width / (times[size] - row / degree[size]) for size in SIZES], row


def _ratio(pairs: Iterable[Rate], waits: float, factor: float) -> float:
    """Return the median slowdown of all ranks at once, over that from sharing too few cores.

    Args:
        factor: what epochs of all ranks at once take over their rates, over that of a rank alone.
    """
    found = statistics.median(alone / crowd for alone, crowd in pairs)
    return max(1.0, found / waits) * factor


def _quoted(value: str) -> str:
    """Return a TOML string, which JSON's quoting makes of a printable text."""
    return json.dumps(printable(value), ensure_ascii=False)


def _list(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
