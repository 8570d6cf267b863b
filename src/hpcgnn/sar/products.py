"""Products of features and weights for functions that rematerialize them, also in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.features import HostRows, NodeFeatures, SparseRows
from hpcgnn.kernels.checks import SHORT, sum_type
from hpcgnn.sar.turns import InTurn, Progress

_WORD = 16  # bytes
_SLAB = 1 << 18  # rows converted at a time
_LONG, _SHORT = 1 << 15, 1 << 10  # rows
_CACHED = 1 << 22  # bytes of a slab of rows that several passes read
# Rows that libraries add up in float32 within 1e-6, by the numbers of the result: of many they add
# some hundred rows at a time, of few row after row.
_BLOCK, _CHUNK, _CHUNK_OF_FEW = 1 << 17, 1 << 10, 1 << 8
_NARROW, _FEW = 1 << 11, 1 << 8


def product_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast, where it is on, gives the operands of dense products."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def wire_type(x: Tensor) -> torch.dtype:
    """The type in which rows of `x` travel."""
    product = product_type(x.device)
    return product if product is not None and x.dtype == torch.float32 else x.dtype


def kernels_read_16_bit(device: torch.device) -> bool:
    """Whether kernels on `device` take 16-bit rows."""
    return device.type == "cuda"


def factor_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that matrices are multiplied in, see `kernels.factor_type`."""
    return dtype if kernels_read_16_bit(device) else kernels.factor_type(dtype, device)


def readable(x: Tensor) -> Tensor:
    """`x` as kernels take it: float32 on a CPU if it is 16-bit."""
    return x.float() if x.dtype in SHORT and not kernels_read_16_bit(x.device) else x


def gathered(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`x` as sums and GAT gather it: on a CPU rounded to bfloat16 where products are in it.

    Args:
        dtype: of products, see `product_type`.
    """
    if kernels_read_16_bit(x.device):
        return x
    if dtype == torch.bfloat16 and rounds_gathered(x):
        return x.to(dtype)
    return x if x.dtype == torch.bfloat16 else readable(x)


def rounds_gathered(x: Tensor) -> bool:
    """Whether `gathered` rounds such rows where products are in bfloat16."""
    return x.dtype == torch.float32 and not kernels_read_16_bit(x.device)


def summed(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of rows of `dtype` as activations: on a CPU in the type of sums."""
    return sums.to(dtype) if kernels_read_16_bit(sums.device) else sums


@dataclass(frozen=True)
class RowLayout:
    """Message rows: `width` features of a type, then a few scalars of the type of sums.

    Args:
        in_words: where the features are whole words of 16 bytes, so is the row. GPUs read these.
    """

    width: int
    num_scalars: int
    dtype: torch.dtype
    in_words: bool = False

    @property
    def columns(self) -> int:
        """W: columns of `dtype` that a row takes."""
        if not self.num_scalars:
            return self.width
        columns = self._begin + self.num_scalars * self._ratio
        word = _WORD // self.dtype.itemsize
        return -(-columns // word) * word if self.in_words and self.width % word == 0 else columns

    @property
    def _ratio(self) -> int:
        return sum_type(self.dtype).itemsize // self.dtype.itemsize

    @property
    def _begin(self) -> int:
        return -(-self.width // self._ratio) * self._ratio

    def features(self, rows_MW: Tensor) -> Tensor:
        """`[M, width]`, sharing memory."""
        return rows_MW[:, : self.width]

    def scalars(self, rows_MW: Tensor) -> Tensor:
        """`[M, num_scalars]`, sharing memory."""
        if not self.num_scalars:
            return rows_MW.new_empty(len(rows_MW), 0, dtype=sum_type(self.dtype))
        end = self._begin + self.num_scalars * self._ratio
        return rows_MW[:, self._begin : end].view(sum_type(self.dtype))


def product(x: NodeFeatures, weight_GF: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`x W^T`: `[n, G]`; of dense operands, and a result, in `factor_type`."""
    if isinstance(x, Tensor):
        if dtype is None:
            return x @ weight_GF.t()
        dtype = factor_type(dtype, x.device)
        return x.to(dtype) @ weight_GF.to(dtype).t()
    if isinstance(x, HostRows):
        return readable(x.times(weight_GF, dtype))
    weight_FG = weight_GF.t().contiguous()
    out_NG = weight_FG.new_zeros(x.shape[0], weight_FG.shape[1])
    kernels.spmm(x.block, weight_FG, out_NG)
    return out_NG


def weight_gradient(x: NodeFeatures, grad_NG: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Gradient of the weights: `[G, F]` from `[n, G]`; `dtype` as in `product`."""
    if isinstance(x, Tensor):
        factor = x.dtype if dtype is None else factor_type(dtype, x.device)
        if factor not in SHORT:
            return product_of_rows(grad_NG.to(factor), x.to(factor)).to(grad_NG.dtype)
        return (grad_NG.to(factor).t() @ x.to(factor)).to(grad_NG.dtype)
    if isinstance(x, HostRows):
        return x.weight_gradient(grad_NG, dtype)
    grad_NG = grad_NG.contiguous()
    grad_FG = grad_NG.new_zeros(x.shape[1], grad_NG.shape[1])
    kernels.spmm(x.transposed, grad_NG, grad_FG)
    return grad_FG.t()


class RowProduct:
    """`x W` of slabs of rows, one after the other: W is prepared once.

    Rows are those of `SlabScratch.rounded`.

    Args:
        weight_FG: of any strides.
        dtype: of products; that of the weights by default.
        most: rows of the largest slab, by default of the first.
    """

    def __init__(
        self, weight_FG: Tensor, dtype: torch.dtype | None = None, *, most: int = 0
    ) -> None:
        self._dtype, self._most = dtype or weight_FG.dtype, most
        self._factor = factor_type(self._dtype, weight_FG.device)
        self._weight_FG = weight_FG.to(self._factor)
        self._packed: kernels.PackedWeights | None = None
        self._found: Tensor | None = None  # of a slab, before its type is changed

    def write(self, x_SF: Tensor, out_SG: Tensor, *, start_G: Tensor | None = None) -> Tensor:
        """`out = start + x W`, rounded to the type of `out`."""
        if packed := self._packed_for(x_SF, out_SG):
            kernels.product(x_SF, packed, out_SG, start_G=start_G)
        elif out_SG.dtype != self._factor:
            out_SG.copy_(self._product(x_SF))
            if start_G is not None:
                out_SG.add_(start_G)
        elif start_G is None:
            torch.mm(x_SF.to(self._factor), self._weight_FG, out=out_SG)
        else:
            torch.addmm(start_G, x_SF.to(self._factor), self._weight_FG, out=out_SG)
        return out_SG

    def add(self, x_SF: Tensor, out_SG: Tensor) -> Tensor:
        """`out += x W`, in the type of sums."""
        if packed := self._packed_for(x_SF, out_SG):
            kernels.product(x_SF, packed, out_SG, adds=True)
            return out_SG
        if out_SG.dtype != self._factor:
            return out_SG.add_(self._product(x_SF))
        return out_SG.addmm_(x_SF.to(self._factor), self._weight_FG)

    def _product(self, x_SF: Tensor) -> Tensor:
        """In the type of factors, in memory that the next slab takes again."""
        if self._found is None or len(self._found) < len(x_SF):
            shape = len(x_SF), self._weight_FG.shape[1]
            self._found = x_SF.new_empty(shape, dtype=self._factor)
        found_SG = self._found[: len(x_SF)]
        return torch.mm(x_SF.to(self._factor), self._weight_FG, out=found_SG)

    def _packed_for(self, x_SF: Tensor, out_SG: Tensor) -> kernels.PackedWeights | None:
        """Where our own product is faster; what comes after the first slab is done in its way."""
        if max(len(x_SF), self._most) < _SHORT and self._packed is None:
            return None
        if not kernels.multiplies(self._dtype, x_SF, out_SG):
            return None
        if self._packed is None:
            self._packed = kernels.pack_weights(self._weight_FG)
        return self._packed


def product_of_rows(a_NG: Tensor, b_NF: Tensor) -> Tensor:
    """`a^T b`, `[G, F]`, of slabs of rows; in float64 where the rows are more than a chunk."""
    count, numbers = len(a_NG), a_NG.shape[1] * b_NF.shape[1]
    chunk = _chunk(a_NG, numbers)
    if count <= chunk:
        return a_NG.t() @ b_NF
    if numbers > _NARROW:
        total_GF = (a_NG[:chunk].t() @ b_NF[:chunk]).double()
        for low in range(chunk, count, chunk):
            total_GF += a_NG[low : low + chunk].t() @ b_NF[low : low + chunk]
        return total_GF
    total_GF = a_NG.new_zeros(a_NG.shape[1], b_NF.shape[1], dtype=torch.float64)
    whole = count // chunk * chunk
    for low in range(0, whole, _BLOCK):
        rows = slice(low, min(low + _BLOCK, whole))
        a_RSG, b_RSF = (x[rows].unflatten(0, (-1, chunk)) for x in (a_NG, b_NF))
        total_GF += torch.bmm(a_RSG.transpose(1, 2), b_RSF).sum(0, dtype=torch.float64)
    return total_GF.add_(a_NG[whole:].t() @ b_NF[whole:])


def exceeds_chunk(x_NF: Tensor, weight_GF: Tensor) -> bool:
    """Whether rows are more than a library adds up exactly for the weights' gradient."""
    return len(x_NF) > _chunk(x_NF, weight_GF.numel())


def _chunk(a_NG: Tensor, numbers: int) -> int:
    """Rows that a library may add up."""
    if a_NG.dtype != torch.float32 or a_NG.device.type == "cuda":
        return max(len(a_NG), 1)
    return _BLOCK if numbers > _NARROW else _CHUNK if numbers > _FEW else _CHUNK_OF_FEW


class ProductSum:
    """`a^T b` of slabs of rows, `[G, F]`: what many rows add up to is added up in float64.

    Args:
        dtype: of products; rows are those of `SlabScratch.rounded`.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._part: Tensor | None = None
        self._total: Tensor | None = None
        self._rows = 0
        self._own: bool | None = None  # whether our own products are the faster ones

    def add(self, a_SG: Tensor, b_SF: Tensor) -> None:
        """Rows that come after those before, at most 32,768 of them."""
        count, narrow = len(a_SG), a_SG.shape[1] * b_SF.shape[1] <= _NARROW
        if self._own is None:
            self._own = count >= _SHORT and kernels.multiplies(self._dtype, a_SG, b_SF)
        own = self._own and kernels.multiplies(self._dtype, a_SG, b_SF)
        factor = factor_type(self._dtype, a_SG.device)
        if self._rows + count > _LONG or (factor in SHORT and not own):
            self._settle()
        self._rows += count
        if own:
            if self._part is None:
                shape = a_SG.shape[1], b_SF.shape[1]
                self._part = a_SG.new_zeros(shape, dtype=sum_type(self._dtype))
            kernels.add_outer_products(a_SG, b_SF, self._part, dtype=self._dtype)
            return
        a_SG, b_SF = a_SG.to(factor), b_SF.to(factor)
        if self._part is not None and not narrow:
            self._part.addmm_(a_SG.t(), b_SF)
            return
        self._settle()
        self._part = product_of_rows(a_SG, b_SF)

    def result(self, dtype: torch.dtype) -> Tensor:
        if self._total is not None:
            self._settle()
            return self._total.to(dtype)
        if self._part is None:
            raise ValueError("no rows were added")
        return self._part.to(dtype)

    def _settle(self) -> None:
        if self._part is not None and self._total is None:
            self._total = self._part.double()
        elif self._part is not None and self._total is not None:
            self._total += self._part
        self._part, self._rows = None, 0


class SlabScratch:
    """Slabs of rows as products take them, one after the other in the same memory.

    Args:
        dtype: of products: rows get `factor_type` of it; None: that which they have.
        reused: False: each in memory of its own, where there is but one slab.
    """

    def __init__(self, dtype: torch.dtype | None, *, reused: bool = True) -> None:
        self._dtype, self._reused = dtype, reused
        self._rows: Tensor | None = None

    def rounded(self, x_SF: Tensor) -> Tensor:
        """`x` itself where it has the type, or where products are quick to change it."""
        if self._dtype is None:
            return x_SF
        factor = factor_type(self._dtype, x_SF.device)
        if x_SF.dtype == factor:
            return x_SF
        if len(x_SF) >= _SHORT and kernels.multiplies(self._dtype, x_SF):
            return x_SF
        if not self._reused:
            return x_SF.to(factor)
        if self._rows is None or len(self._rows) < len(x_SF):
            self._rows = x_SF.new_empty(x_SF.shape, dtype=factor)
        return self._rows[: len(x_SF)].copy_(x_SF)


def row_slabs(x_NK: Tensor) -> list[slice]:
    """Consecutive rows that are still in a CPU's cache when the next pass over them comes.

    All rows at once on a GPU; at least one slab.
    """
    count = len(x_NK)
    if x_NK.device.type != "cpu":
        return [slice(0, count)]
    row_bytes = max(x_NK.shape[1] * x_NK.element_size(), 1)
    most = min(max(_CACHED // row_bytes // _SHORT, 1) * _SHORT, _LONG)
    return [slice(low, min(low + most, count)) for low in range(0, max(count, 1), most)]


def dense_rows(x: NodeFeatures, device: torch.device) -> Tensor:
    """Node features as one dense `[n, F]` on `device`, for what needs every number."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, HostRows):
        slabs = [slab_SF.clone() for _, slab_SF in x.slabs()]
        return torch.cat(slabs) if slabs else x.rows_NF.to(device)
    block = x.block
    stored_E = block.weight
    if stored_E is None:
        stored_E = torch.ones(block.columns.shape[0], device=block.device)
    counts = block.end - block.begin
    rows_E = torch.repeat_interleave(torch.arange(block.num_rows, device=block.device), counts)
    out_NF = stored_E.new_zeros(x.shape)
    return out_NF.index_put_((rows_E, block.columns.long()), stored_E, accumulate=True)


def shell(x: Any) -> tuple[Any, list[Tensor]]:
    """Features without what dropout makes anew each epoch, and that, for autograd to hold."""
    if not isinstance(x, SparseRows) or x.block.weight is None or x.transposed.weight is None:
        return x, []
    bare = replace(
        x, block=replace(x.block, weight=None), transposed=replace(x.transposed, weight=None)
    )
    return bare, [x.block.weight, x.transposed.weight]


def refill(x: Any, held: Sequence[Tensor]) -> Any:
    """What `shell` took apart."""
    if not isinstance(x, SparseRows) or not held:
        return x
    block, transposed = replace(x.block, weight=held[0]), replace(x.transposed, weight=held[1])
    return replace(x, block=block, transposed=transposed)


def head_matrix(*vectors_HC: Tensor) -> Tensor:
    """`[H * C, k * H]` for k sets of vectors: `z @ matrix` is each head's product with its own."""
    blocks = [torch.block_diag(*vector_HC) for vector_HC in vectors_HC]
    return torch.cat(blocks).t().contiguous()


def head_products(
    a_NK: Tensor,
    b_NK: Tensor,
    heads: int,
    minus_K: Tensor | None = None,
    grad_NK: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """`<a, b - minus>` per node and head in the type of sums: `[n, H]`; see `kernels.head_dots`."""
    out_NH = a_NK.new_empty(a_NK.shape[0], heads, dtype=sum_type(a_NK.dtype))
    kernels.head_dots(a_NK, b_NK, out_NH, minus_K=minus_K, grad_NK=grad_NK, p=p)
    return out_NH


def head_scores(z_NK: Tensor, *vectors_HC: Tensor) -> tuple[Tensor, ...]:
    """`<z, vector>` per node and head in the type of sums: an `[n, H]` for each set of vectors."""
    matrix_KH = head_matrix(*vectors_HC)
    out_NH = matrix_KH.new_empty(z_NK.shape[0], matrix_KH.shape[1])
    wide, scores = SlabScratch(matrix_KH.dtype), RowProduct(matrix_KH)
    for rows in row_slabs(z_NK):
        scores.write(wide.rounded(z_NK[rows]), out_NH[rows])
    return out_NH.split(len(vectors_HC[0]), dim=1)


class ScoredProduct:
    """`x W^T` as GAT gathers it, and its `head_scores`: a slab of rows at a time.

    Args:
        dtype: of products, see `product`.

    Attributes:
        z_NK: the product; rows are right once they are written.
        scores: an `[n, H]` for each set of vectors, likewise.
    """

    def __init__(
        self,
        x: NodeFeatures,
        weight_KF: Tensor,
        dtype: torch.dtype | None,
        arrays: Arrays,
        *vectors_HC: Tensor,
    ) -> None:
        self.scores: tuple[Tensor, ...] = ()
        self._slabs: list[slice] = []
        gathers = not kernels_read_16_bit(weight_KF.device) and dtype in (None, torch.bfloat16)
        if not isinstance(x, Tensor) or not gathers:
            self.z_NK = gathered(product(x, weight_KF, dtype), dtype)
            if vectors_HC:
                self.scores = head_scores(self.z_NK, *vectors_HC)
            return
        dtype = dtype or x.dtype
        self._x_NF = x
        self.z_NK = arrays.empty(len(x), len(weight_KF), dtype=dtype, device=x.device)
        self._slabs = row_slabs(self.z_NK)
        most = self._slabs[0].stop
        self._weights = RowProduct(weight_KF.t(), dtype, most=most)
        matrix_KH = head_matrix(*vectors_HC) if vectors_HC else weight_KF.new_empty(0, 0)
        self._out_NH = matrix_KH.new_empty(len(x), matrix_KH.shape[1])
        self._short, self._wide = SlabScratch(dtype), SlabScratch(matrix_KH.dtype)
        self._scores = RowProduct(matrix_KH, most=most)
        if vectors_HC:
            self.scores = self._out_NH.split(len(vectors_HC[0]), dim=1)

    def turns(self, first: int = 0) -> tuple[InTurn, InTurn]:
        """What writes the slabs with rows from `first` on, and what writes the others."""
        return (
            InTurn([rows for rows in self._slabs if rows.stop > first], self._write),
            InTurn([rows for rows in self._slabs if rows.stop <= first], self._write),
        )

    def write(self, progress: Progress) -> None:
        """All rows; `progress` is called after each slab."""
        for turn in self.turns():
            turn.rest(progress)

    def _write(self, rows: slice) -> None:
        self._weights.write(self._short.rounded(self._x_NF[rows]), self.z_NK[rows])
        if self.scores:
            self._scores.write(self._wide.rounded(self.z_NK[rows]), self._out_NH[rows])
