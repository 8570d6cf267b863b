"""Node features other than plain arrays: sparse rows, and rows that stay on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcgnn.comm.transport.staged import Copier
from hpcgnn.errors import InputError
from hpcgnn.kernels.block import Block, Derived
from hpcgnn.kernels.seal import Seal


@dataclass(frozen=True, eq=False)
class SparseRows(Derived):
    """Sparse node features, compressed by row, with their transpose (both constant)."""

    shape: tuple[int, int]
    block: Block
    transposed: Block
    _seal: Seal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pair = {"block": self.block, "transposed": self.transposed}
        arrays = {
            f"{side}.{name}": getattr(block, name)
            for side, block in pair.items()
            for name in ("begin", "end", "columns", "weight")
        }
        object.__setattr__(self, "_seal", Seal(arrays, [f"{side}.weight" for side in pair]))

    def check_unchanged(self) -> None:
        """Raise InputError if one of the two forms was changed in place: the other lacks it."""
        if self._seal.changed():
            raise InputError(
                "sparse features were changed in place, which their transpose does not follow: "
                "change them before `convert`, or use dense features"
            )

    def to(self, device: torch.device | str) -> SparseRows:
        return SparseRows(self.shape, self.block.to(device), self.transposed.to(device))


SLAB_BYTES = 64 << 20


@dataclass(frozen=True)
class HostRows:
    """Constant dense features `[n, F]` for layers whose first step multiplies them by weights.

    Attributes:
        rows_NF: float32 in (pinned) host memory.
        copier: copies slabs to the device.
        slab_bytes: size of each of the two slabs on the device.
        change: `change(rows, slab)` is applied in place to each slab on the device (dropout).
    """

    rows_NF: Tensor
    copier: Copier
    slab_bytes: int = SLAB_BYTES
    change: Callable[[slice, Tensor], None] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows_NF.shape[0], self.rows_NF.shape[1]

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, their features on the device); the features are valid until the next step.

        The next slab is copied while kernels queued for this one run.
        """
        count, width = self.shape
        row_bytes = max(width * self.rows_NF.element_size(), 1)
        length = max(min(self.slab_bytes // row_bytes, count), 1)
        slabs = [
            self.copier.near(length * row_bytes).view(self.rows_NF.dtype).view(length, width)
            for _ in range(2 if width else 0)
        ]
        used = [self.copier.mark() for _ in slabs]
        for number, low in enumerate(range(0, count if width else 0, length)):
            rows, place = slice(low, min(low + length, count)), number % 2
            slab_SF = slabs[place][: rows.stop - low]
            self.copier.to_near(slab_SF, self.rows_NF[rows], used[place])
            if self.change is not None:
                self.change(rows, slab_SF)
            yield rows, slab_SF
            used[place] = self.copier.mark()

    def columns(self, chosen: slice, device: torch.device) -> Tensor:
        """Return some columns of all rows on the device, without `change`."""
        return self.rows_NF[:, chosen].contiguous().to(device)

    def times(self, weight_GF: Tensor, precision: torch.dtype | None = None) -> Tensor:
        """Return `x W^T`: `[n, G]`, with operands rounded to `precision` if given."""
        dtype = precision or weight_GF.dtype
        weight_FG = weight_GF.to(dtype).t()
        out_NG = weight_FG.new_zeros(self.shape[0], weight_FG.shape[1])
        for rows, slab_SF in self.slabs():
            torch.mm(slab_SF.to(dtype), weight_FG, out=out_NG[rows])
        return out_NG

    def weight_gradient(self, grad_NG: Tensor, precision: torch.dtype | None = None) -> Tensor:
        """Return the gradient of the weights: `[G, F]` from `[n, G]`."""
        dtype = precision or self.rows_NF.dtype
        # With many slabs, a float32 sum would lose what each slab adds.
        total_GF = torch.zeros(
            grad_NG.shape[1], self.shape[1], dtype=torch.float64, device=grad_NG.device
        )
        for rows, slab_SF in self.slabs():
            total_GF += grad_NG[rows].to(dtype).t() @ slab_SF.to(dtype)
        return total_GF.to(self.rows_NF.dtype)


NodeFeatures = Tensor | SparseRows | HostRows
