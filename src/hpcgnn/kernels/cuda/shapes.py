"""The instances of CUDA kernel templates for given tensors, and their numbers of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from hpcgnn.kernels.cuda.launch import THREADS, WARP

NAMES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int32: "int",
}
WIDTHS = {"float": (4, 1), "double": (1,), "f16": (8, 2, 1), "bf16": (8, 2, 1)}
BARE, WEIGHTED, SCALED = range(3)  # kinds of edges in sums: see spmm.cu
PLAIN, DROPS, FEATURES = range(3)  # kinds of attention: see gat.cuh
KNOWN_LANES = (4, 8, 16, 32)  # lanes per head that are compile-time constants, with wide loads
WIDE = 2 * WARP
WORD = 16  # bytes of one load


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def vector_width(period: int, tensors: Sequence[Tensor], most: int = 8) -> int:
    """Return the number of adjacent columns that one lane can load and store at once.

    Args:
        period: the number of columns, or channels of a head, which the width must divide.
        tensors: all tensors accessed this way; the first one's dtype sets the possible widths.
    """
    for width in WIDTHS[NAMES[tensors[0].dtype]]:
        if width <= most and period % width == 0 and all(_aligned(t, width) for t in tensors):
            return width
    raise ValueError("every tensor has width 1")


def _aligned(tensor: Tensor, width: int) -> bool:
    unit = min(width * tensor.element_size(), WORD)
    row = tensor.stride(0) * tensor.element_size() if tensor.shape[0] > 1 else 0
    return tensor.data_ptr() % unit == 0 and row % unit == 0


@dataclass(frozen=True)
class RowShape:
    """The lanes for sums over a row's edges: see `Place` in common.cuh."""

    vector: int
    lanes_log: int
    span_log: int
    tiles: int

    @staticmethod
    def of(width: int, vector: int, mean_degree: float) -> RowShape:
        """Return the shape: several groups of lanes share a row that has enough edges for them."""
        packs = width // vector
        lanes = min(power_of_two(packs), WARP)
        span = lanes
        while span < WARP and 8 * span <= lanes * mean_degree:
            span *= 2
        tiles = -(-packs // lanes)
        return RowShape(vector, lanes.bit_length() - 1, span.bit_length() - 1, tiles)

    def blocks(self, num_rows: int) -> tuple[int, int]:
        return -(-(num_rows << self.span_log) // THREADS), self.tiles


@dataclass(frozen=True)
class HeadShape:
    """The lanes for attention: see `HeadPlace` in gat.cuh.

    `template`: the lanes per head where these are a compile-time constant, else WIDE or 0.
    `first_channels`: that of each launch; several where a head is too wide for a warp.
    """

    vector: int
    template: int
    lanes: int
    side: int
    tiles: int
    first_channels: tuple[int, ...]

    @cached_property
    def logs(self) -> tuple[np.int32, np.int32]:
        """Logarithms of `lanes` and `side`, as kernels take them."""
        return np.int32(self.lanes.bit_length() - 1), np.int32(self.side.bit_length() - 1)

    def types(self, dtype: torch.dtype) -> str:
        """Return the template arguments that lay out values of `dtype` in lanes."""
        return f"{NAMES[dtype]}, {self.vector}, {self.template}"

    @property
    def groups(self) -> int:
        """Number of groups of lanes that share a warp."""
        return WARP // (self.lanes * self.side)

    @staticmethod
    @cache
    def of(heads: int, channels: int, vector: int, widest: int) -> HeadShape:
        """Return the shape; `widest` is the widest vector width of the dtype."""
        packs = channels // vector
        if packs > WARP:
            steps = tuple(range(0, channels, WARP * vector))
            return HeadShape(vector, WIDE, WARP, 1, heads, steps)
        lanes = power_of_two(packs)
        side = min(WARP // lanes, power_of_two(heads))
        known = lanes if vector == widest > 1 and lanes in KNOWN_LANES else 0
        return HeadShape(vector, known, lanes, side, -(-heads // side), (0,))

    def blocks(self, num_rows: int, *, together: int = 1) -> tuple[int, int]:
        """Return the blocks of threads in x and y; `together`: rows per warp."""
        warps = -(-num_rows // together)
        return -(-warps * WARP // THREADS), self.tiles

    @cached_property
    def launches(self) -> list[tuple[np.int32, np.int32]]:
        """(first_channel, keep) of each launch."""
        last = self.first_channels[-1]
        return [(np.int32(first), np.int32(first == last)) for first in self.first_channels]


def instances() -> dict[str, list[str]]:
    """Return every kernel expression that can be requested, by source file."""
    sums = [(x, x) for x in WIDTHS]
    sums += [("f16", "float"), ("bf16", "float"), ("float", "f16"), ("float", "bf16")]
    mixed = [(x, o, v) for x, o in sums for v in WIDTHS[x]]
    same = [(x, v) for x in WIDTHS for v in WIDTHS[x]]
    small = [(x, v) for x, v in same if v <= 4]
    both = ("true", "false")
    lanes = [(x, v, n) for x, v in same for n in (0, WIDE)]
    lanes += [(x, WIDTHS[x][0], n) for x in ("float", "f16", "bf16") for n in KNOWN_LANES]
    plain = [f"{x}, {v}, {n}" for x, v, n in lanes]
    heads = [f"<{shape}, {e}>" for shape in plain for e in (PLAIN, DROPS, FEATURES)]
    return {
        "spmm": [
            f"spmm<{x}, {o}, {v}, {k}>" for x, o, v in mixed for k in (BARE, WEIGHTED, SCALED)
        ],
        "maximum": [f"maximum<{x}, {v}, {c}>" for x, v in small for c in both]
        + [f"maximum_backward<{x}, {o}, {v}>" for x, o, v in mixed if o in (x, "float") and v <= 4],
        "dropout": [f"dropout<{x}, {o}, {v}>" for x, o, v in mixed if x == o or x == "float"]
        + [f"{k}<{x}, {v}>" for k in ("passed_backward", "relu_dropout_backward") for x, v in same],
        "rows": [
            f"{k}<{x}, {o}, {v}>"
            for k in ("pack_rows", "pack_message", "add_rows")
            for x, o, v in mixed
        ],
        "gat_forward": [f"gat_forward{h}" for h in heads],
        "gat_backward": [f"gat_backward{h}" for h in heads],
        "gat_units": [f"gat_longest<{shape}>" for shape in plain]
        + [f"gat_settle<{x}, {o}>" for x in WIDTHS for o in sorted({_sum(x), "double"})],
        "head_dots": [f"head_{k}<{shape}>" for k in ("dots", "scores") for shape in plain],
        "gat_join": ["gat_join<float>", "gat_join<double>"],
        "gatv2_forward": [f"gatv2_forward{h}" for h in heads],
        "gatv2_backward": [
            f"gatv2_backward_{side}{h}" for side in ("right", "left") for h in heads
        ],
    }


def _sum(name: str) -> str:
    """Return the accumulation type of these values."""
    return "double" if name == "double" else "float"
