"""The speed of a machine, from a file of numbers: `jobs/machines/*.toml` or a user's.

`hpcgnn bench machine` writes such a file for the machine on which it runs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.settings import parse_size, parse_toml, read_text

KERNELS = ("sum", "gat_forward", "gat_backward", "gatv2_forward", "gatv2_backward")
SIZES = ("few", "some", "many")  # of what is gathered from
HEADS = 4  # of the attention kernels measured
CROWDED = ("products", "gathers", "rows", "steps")


@dataclass(frozen=True)
class Curve:
    """A positive function of one variable, log-log linear between measured points."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def at(self, x: float) -> float:
        """Return the value at `x`; outside the measured range, that of the nearest point."""
        if x <= self.x[0]:
            return self.y[0]
        if x >= self.x[-1]:
            return self.y[-1]
        right = bisect_right(self.x, x)
        x0, x1, y0, y1 = self.x[right - 1], self.x[right], self.y[right - 1], self.y[right]
        return y0 * (y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0))


@dataclass(frozen=True)
class Gather:
    """The speed of a kernel by width, in numbers gathered: edges times width.

    Attributes:
        rates: numbers per second, for each of the numbers of rows that were gathered from.
        from_rows: these numbers, ascending.
        row_seconds: seconds of a row of the result, besides those of its edges.
    """

    rates: tuple[Curve, ...]
    from_rows: tuple[float, ...]
    row_seconds: Curve

    def seconds(self, width: float, edges: float, rows: float, gathered: float) -> float:
        """Return the seconds of `edges` edges into `rows` rows, out of `gathered` rows."""
        rate = Curve(self.from_rows, tuple(curve.at(width) for curve in self.rates)).at(gathered)
        return edges * width / rate + rows * self.row_seconds.at(width)


@dataclass(frozen=True)
class Links:
    """Seconds of a message by its bytes; longer ones have the rate of the longest one measured."""

    seconds: Curve

    def of(self, num_bytes: float) -> float:
        longest = self.seconds.x[-1]
        if num_bytes <= longest:
            return self.seconds.at(num_bytes)
        return self.seconds.y[-1] * num_bytes / longest


@dataclass(frozen=True)
class Machine:
    """Rates of one rank that has its share of a node to itself.

    Attributes:
        name, source: printed with every answer; `source` says where the numbers are from.
        device: `cpu` or `cuda`.
        memory_per_rank: bytes.
        ranks_per_node: number of ranks that a node is given.
        full_speed: number of ranks per node with cores (or a GPU) of their own; more share them.
        products: FLOP/s of dense products by the width of square weights.
        gathers: by kernel, see `KERNELS`.
        rows: bytes per second of passes over rows.
        host: bytes per second from host memory to the device; on a CPU as `rows`.
        crowd: seconds of each of `full_speed` ranks working at once, over those of a single rank,
            for `products`, `gathers`, `rows` and `steps` (1 if an older file lacks these).
        inside, between: messages inside a node and between nodes.
        step_seconds: time of a pass of a GCN layer that doesn't depend on the size of the graph.
    """

    name: str
    source: str
    device: str
    memory_per_rank: int
    ranks_per_node: int
    full_speed: int
    products: Curve
    gathers: dict[str, Gather]
    rows: float
    host: float
    inside: Links
    between: Links
    step_seconds: float
    crowd: dict[str, float]

    def slowdown(self, what: str, ranks: int) -> float:
        """Return the seconds of each of `ranks` ranks over those of a rank alone."""
        here = min(ranks, self.ranks_per_node)
        at_once, most = min(here, self.full_speed), min(self.ranks_per_node, self.full_speed)
        share = 1.0 if most == 1 else (at_once - 1) / (most - 1)
        return (1 + (self.crowd[what] - 1) * share) * self.turns(ranks)

    def turns(self, ranks: int) -> float:
        """Return how many of `ranks` ranks share a core, at least 1."""
        return max(1.0, min(ranks, self.ranks_per_node) / self.full_speed)

    def links(self, ranks: int) -> Links:
        """Return the links that most messages of a job of `ranks` ranks use."""
        return self.inside if ranks <= self.ranks_per_node else self.between


def folder() -> Path:
    """Return the folder of machine files: in an installed package, or beside a clone's sources."""
    package = Path(__file__).parents[2]
    places = (package / "jobs" / "machines", package.parents[1] / "jobs" / "machines")
    return next((place for place in places if place.is_dir()), places[0])


def known() -> list[str]:
    """Return the names of the machines in `jobs/machines`."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def read_machine(name: str) -> Machine:
    """Return the machine with a name in `jobs/machines`, or in a file that ends in `.toml`.

    Raises:
        InputError: there is no such machine, or the file lacks something.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in known():
            raise InputError(
                f"--machine must be one of {', '.join(known())}, or a file written by `hpcgnn "
                "bench machine`",
                value=name,
            )
        path = folder() / f"{name}.toml"
    text = read_text(path)
    try:
        return machine_of(text)
    except InputError as error:
        raise InputError(str(error), file=path) from None


def machine_of(text: str) -> Machine:
    """Return the machine that a TOML text describes.

    Raises:
        InputError: it is not TOML, or lacks something.
    """
    try:
        content = parse_toml(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not TOML: {error}") from None
    return _machine(content)


def _machine(content: dict[str, Any]) -> Machine:
    table = _Table(content, "")
    products, gathers = table.table("products"), table.table("gathers")
    messages, crowd = table.table("messages"), table.table("crowd")
    # An older file lacks the middle one.
    sizes = [size for size in SIZES if size != "some" or gathers.has("some_rows")]
    from_rows = tuple(gathers.number(f"{size}_rows") for size in sizes)
    for less, more, size in zip(from_rows, from_rows[1:], sizes, strict=False):
        if less >= more:
            raise InputError(f"gathers.{size}_rows must be below the next larger", value=less)
    kernels = {}
    for name in KERNELS:
        kernel = gathers.table(name)
        kernels[name] = Gather(
            rates=tuple(kernel.curve("widths", size) for size in sizes),
            from_rows=from_rows,
            row_seconds=kernel.curve("widths", "row_seconds", 0.0),
        )
    device = table.text("device")
    if device not in ("cpu", "cuda"):
        raise InputError("device must be cpu or cuda", value=device)
    return Machine(
        name=table.text("name"),
        source=table.text("source"),
        device=device,
        memory_per_rank=parse_size(table.text("memory_per_rank")),
        ranks_per_node=table.count("ranks_per_node"),
        full_speed=table.count("full_speed"),
        products=products.curve("widths", "flops"),
        gathers=kernels,
        rows=table.number("rows"),
        host=table.number("host"),
        inside=Links(messages.table("inside").curve("bytes", "seconds")),
        between=Links(messages.table("between").curve("bytes", "seconds")),
        step_seconds=table.number("step_seconds"),
        crowd={name: crowd.number(name, 1.0 if name == "steps" else None) for name in CROWDED},
    )


@dataclass(frozen=True)
class _Table:
    """A table of the file, with getters that raise InputError for missing or wrong values."""

    content: Any
    path: str

    def _get(self, name: str, kinds: type | tuple[type, ...], what: str) -> Any:
        value = self.content.get(name) if isinstance(self.content, dict) else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"{self.path}{name} must be {what}", value=value)
        return value

    def has(self, name: str) -> bool:
        return name in self.content

    def table(self, name: str) -> _Table:
        return _Table(self._get(name, dict, "a table"), f"{self.path}{name}.")

    def text(self, name: str) -> str:
        return str(self._get(name, str, "text"))

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self.content:
            return default
        try:
            value = float(self._get(name, (int, float), "a number"))
        except OverflowError:  # an integer of hundreds of digits
            value = math.inf
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{self.path}{name} must be a number above 0", value=value)
        return value

    def count(self, name: str) -> int:
        value = self._get(name, int, "an integer")
        if not 1 <= value <= 1 << 20:
            raise InputError(f"{self.path}{name} must be in 1 to {1 << 20:,}", value=value)
        return int(value)

    def curve(self, x: str, y: str, default: float | None = None) -> Curve:
        """Return a curve; one that an older file lacks has the value `default` everywhere."""
        if default is not None and y not in self.content:
            return Curve((1.0,), (default,))
        found = [self._numbers(name) for name in (x, y)]
        if len(found[0]) != len(found[1]) or not found[0]:
            raise InputError(f"{self.path}{y} must have one number per entry of {x}")
        if any(a >= b for a, b in zip(found[0], found[0][1:], strict=False)):
            raise InputError(f"{self.path}{x} must be ascending")
        return Curve(*map(tuple, found))

    def _numbers(self, name: str) -> list[float]:
        values = self._get(name, list, "a list of numbers")
        return [_Table({name: value}, self.path).number(name) for value in values]
