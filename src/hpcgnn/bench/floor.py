"""A lower bound of an epoch's time: products at full speed, gathers at the speed of copies."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import torch

from hpcgnn.bench.problem import GraphSize, ModelShape
from hpcgnn.bench.timing import copy_bandwidth, synchronise

_FLOAT = 4  # bytes
_MOST_ROWS = 1 << 17
_REPEAT = 5


@dataclass(frozen=True)
class Demand:
    """Floating-point operations of dense products, and bytes of rows gathered along edges."""

    operations: float
    num_bytes: float


def demand_of(size: GraphSize, shape: ModelShape) -> Demand:
    """Return the work of an epoch, forward and backward, if nothing is computed twice.

    Every convolution multiplies rows by weights in forward, and in backward for the gradient of the
    weights and, except in the first layer, of its input; SAGE has two weights. Every edge gathers
    one row in forward and one in backward, as wide as the narrower side if the layer is linear; the
    sums of SAGE and GCN over the input are the same in every epoch and count as zero.
    """
    attention = shape.with_heads
    ends = [shape.hidden] * (shape.layers - 1)
    ends.append(size.classes * (shape.heads if attention else 1))
    starts = [size.features, *[shape.hidden] * (shape.layers - 1)]
    weights = 2 if shape.kind in ("sage", "gatv2") else 1
    operations = num_bytes = 0.0
    for layer, (a, b) in enumerate(zip(starts, ends, strict=True)):
        products = 3 if layer else 2
        operations += 2.0 * size.nodes * weights * a * b * products
        if attention:
            num_bytes += 2.0 * size.edges * b * _FLOAT
        elif layer:
            num_bytes += 2.0 * size.edges * min(a, b) * _FLOAT
    return Demand(operations, num_bytes)


@dataclass(frozen=True)
class Floor:
    """Seconds of an epoch's products and gathers, at rates measured here."""

    products: float
    gathers: float
    operation_rate: float
    byte_rate: float

    @property
    def seconds(self) -> float:
        return self.products + self.gathers

    def as_json(self) -> dict[str, float]:
        return asdict(self) | {"seconds": self.seconds}

    def __str__(self) -> str:
        return (
            f"floor {self.seconds:.3g} s: {self.products:.3g} s of products at "
            f"{self.operation_rate / 1e9:.0f} GFLOP/s + {self.gathers:.3g} s of gathers at "
            f"{self.byte_rate / 1e9:.1f} GB/s of copying"
        )


def measure_floor(size: GraphSize, shape: ModelShape, threads: int, device: torch.device) -> Floor:
    """Measure the floor on this device; on a CPU with `threads` threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        operation_rate = _product_rate(min(size.nodes, _MOST_ROWS), shape.hidden, device)
        byte_rate = copy_bandwidth(device, _REPEAT)
    finally:
        torch.set_num_threads(before)
    demand = demand_of(size, shape)
    return Floor(
        demand.operations / operation_rate, demand.num_bytes / byte_rate, operation_rate, byte_rate
    )


def _product_rate(rows: int, width: int, device: torch.device) -> float:
    a, b = torch.randn(rows, width, device=device), torch.randn(width, width, device=device)
    out = torch.empty(rows, width, device=device)
    seconds = []
    synchronise()
    for _ in range(_REPEAT + 2):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return 2.0 * rows * width * width / statistics.median(seconds[2:])
