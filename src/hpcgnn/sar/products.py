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
from hpcgnn.kernels.checks import HALF_PRECISION, sum_type
from hpcgnn.sar.turns import InTurn, Progress

_WORD = 16  # bytes that a GPU reads at once
_LONG, _SHORT = 1 << 15, 1 << 10  # rows
_CACHED = 1 << 22  # bytes of a slab of rows that several passes read
# Rows that libraries add up in float32 within 1e-6, by the size of the result: for large results
# they add some hundred rows at a time, for small ones row after row.
_BLOCK, _CHUNK, _CHUNK_OF_FEW = 1 << 17, 1 << 10, 1 << 8
_NARROW, _FEW = 1 << 11, 1 << 8


def product_type(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast, if enabled, gives the operands of dense products, or None."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def wire_type(x: Tensor) -> torch.dtype:
    """Return the dtype of rows of `x` in messages."""
    product = product_type(x.device)
    return product if product is not None and x.dtype == torch.float32 else x.dtype


def kernels_read_16_bit(device: torch.device) -> bool:
    """Return whether kernels on `device` read 16-bit rows."""
    return device.type == "cuda"


def factor_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that matrices are multiplied in, see `kernels.factor_type`."""
    return dtype if kernels_read_16_bit(device) else kernels.factor_type(dtype, device)


def readable(x: Tensor) -> Tensor:
    """Return `x` as kernels read it: 16-bit rows as float32 on a CPU."""
    return x.float() if x.dtype in HALF_PRECISION and not kernels_read_16_bit(x.device) else x


def gathered(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return `x` as sums and GAT gather it: on a CPU in bfloat16 if products are in bfloat16.

    Args:
        dtype: of products, see `product_type`.
    """
    if kernels_read_16_bit(x.device):
        return x
    if dtype == torch.bfloat16 and rounds_gathered(x):
        return x.to(dtype)
    return x if x.dtype == torch.bfloat16 else readable(x)


def rounds_gathered(x: Tensor) -> bool:
    """Return whether `gathered` rounds rows like `x` if products are in bfloat16."""
    return x.dtype == torch.float32 and not kernels_read_16_bit(x.device)


def summed(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sums of rows of `dtype` as activations: on a CPU they keep the accumulation dtype."""
    return sums.to(dtype) if kernels_read_16_bit(sums.device) else sums


@dataclass(frozen=True)
class RowLayout:
    """The layout of message rows: `width` features, then scalars in the accumulation dtype.

    Args:
        dtype: of the features.
        in_words: if the features fill whole words of 16 bytes, so does the row. For GPUs.
    """

    width: int
    num_scalars: int
    dtype: torch.dtype
    in_words: bool = False

    @property
    def columns(self) -> int:
        """W: number of columns of `dtype` in a row."""
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
        """Return the features, `[M, width]`, sharing memory."""
        return rows_MW[:, : self.width]

    def scalars(self, rows_MW: Tensor) -> Tensor:
        """Return the scalars, `[M, num_scalars]`, sharing memory."""
        if not self.num_scalars:
            return rows_MW.new_empty(len(rows_MW), 0, dtype=sum_type(self.dtype))
        end = self._begin + self.num_scalars * self._ratio
        return rows_MW[:, self._begin : end].view(sum_type(self.dtype))


def product(x: NodeFeatures, weight_GF: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return `x W^T`: `[n, G]`; dense operands, and their result, are in `factor_type`."""
    if isinstance(x, Tensor):
        if dtype is None:
            return x @ weight_GF.t()
        dtype = factor_type(dtype, x.device)
        return x.to(dtype) @ weight_GF.to(dtype).t()
    if isinstance(x, HostRows):
        return readable(x.times(weight_GF, dtype))
    x.check_unchanged()
    weight_FG = weight_GF.t().contiguous()
    out_NG = weight_FG.new_zeros(x.shape[0], weight_FG.shape[1])
    kernels.spmm(x.block, weight_FG, out_NG)
    return out_NG


def weight_gradient(x: NodeFeatures, grad_NG: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the gradient of the weights: `[G, F]` from `[n, G]`; `dtype` as in `product`."""
    if isinstance(x, Tensor):
        factor = x.dtype if dtype is None else factor_type(dtype, x.device)
        if factor not in HALF_PRECISION:
            return product_of_rows(grad_NG.to(factor), x.to(factor)).to(grad_NG.dtype)
        return (grad_NG.to(factor).t() @ x.to(factor)).to(grad_NG.dtype)
    if isinstance(x, HostRows):
        return x.weight_gradient(grad_NG, dtype)
    x.check_unchanged()
    grad_NG = grad_NG.contiguous()
    grad_FG = grad_NG.new_zeros(x.shape[1], grad_NG.shape[1])
    kernels.spmm(x.transposed, grad_NG, grad_FG)
    return grad_FG.t()


class RowProduct:
    """A product `x W` that is applied to slabs of rows; W is prepared once.

    Rows are passed as returned by `SlabScratch.rounded`.

    Args:
        weight_FG: of any strides.
        dtype: of products; that of the weights by default.
        most: rows of the largest slab; by default those of the first.
    """

    def __init__(
        self, weight_FG: Tensor, dtype: torch.dtype | None = None, *, most: int = 0
    ) -> None:
        self._dtype, self._most = dtype or weight_FG.dtype, most
        self._factor = factor_type(self._dtype, weight_FG.device)
        self._weight_FG = weight_FG.to(self._factor)
        self._packed: kernels.PackedWeights | None = None
        self._found: Tensor | None = None  # product of a slab, before its dtype changes

    def write(self, x_SF: Tensor, out_SG: Tensor, *, start_G: Tensor | None = None) -> Tensor:
        """Write `out = start + x W`, rounded to the dtype of `out`."""
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
        """Add `x W` to `out`, in the accumulation dtype."""
        if packed := self._packed_for(x_SF, out_SG):
            kernels.product(x_SF, packed, out_SG, adds=True)
            return out_SG
        if out_SG.dtype != self._factor:
            return out_SG.add_(self._product(x_SF))
        return out_SG.addmm_(x_SF.to(self._factor), self._weight_FG)

    def _product(self, x_SF: Tensor) -> Tensor:
        """Return `x W` in the dtype of factors, in memory that the next slab reuses."""
        if self._found is None or len(self._found) < len(x_SF):
            shape = len(x_SF), self._weight_FG.shape[1]
            self._found = x_SF.new_empty(shape, dtype=self._factor)
        found_SG = self._found[: len(x_SF)]
        return torch.mm(x_SF.to(self._factor), self._weight_FG, out=found_SG)

    def _packed_for(self, x_SF: Tensor, out_SG: Tensor) -> kernels.PackedWeights | None:
        """Return packed weights where our own product is faster; later slabs follow the first."""
        if max(len(x_SF), self._most) < _SHORT and self._packed is None:
            return None
        if not kernels.multiplies(self._dtype, x_SF, out_SG):
            return None
        if self._packed is None:
            self._packed = kernels.pack_weights(self._weight_FG)
        return self._packed


def product_of_rows(a_NG: Tensor, b_NF: Tensor) -> Tensor:
    """Return `a^T b`, `[G, F]`; rows beyond one chunk are summed over chunks in float64."""
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
    """Return whether there are more rows than a library sums accurately for weight gradients."""
    return len(x_NF) > _chunk(x_NF, weight_GF.numel())


def _chunk(a_NG: Tensor, numbers: int) -> int:
    """Return the number of rows whose sum may be left to a library."""
    if a_NG.dtype != torch.float32 or a_NG.device.type == "cuda":
        return max(len(a_NG), 1)
    return _BLOCK if numbers > _NARROW else _CHUNK if numbers > _FEW else _CHUNK_OF_FEW


class ProductSum:
    """`a^T b` of slabs of rows, `[G, F]`; sums over many rows are accumulated in float64.

    Args:
        dtype: of products; rows are passed as returned by `SlabScratch.rounded`.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._part: Tensor | None = None
        self._total: Tensor | None = None
        self._rows = 0
        self._own: bool | None = None  # whether our own products are faster

    def add(self, a_SG: Tensor, b_SF: Tensor) -> None:
        """Add the product of the next rows, at most 32,768 of them."""
        count, narrow = len(a_SG), a_SG.shape[1] * b_SF.shape[1] <= _NARROW
        if self._own is None:
            self._own = count >= _SHORT and kernels.multiplies(self._dtype, a_SG, b_SF)
        own = self._own and kernels.multiplies(self._dtype, a_SG, b_SF)
        factor = factor_type(self._dtype, a_SG.device)
        if self._rows + count > _LONG or (factor in HALF_PRECISION and not own):
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
    """A converter of row slabs to the dtype of products, which reuses its memory.

    Args:
        dtype: of products; rows are converted to its `factor_type`. None: rows stay as they are.
        reused: False: a slab gets memory of its own; for a single slab.
    """

    def __init__(self, dtype: torch.dtype | None, *, reused: bool = True) -> None:
        self._dtype, self._reused = dtype, reused
        self._rows: Tensor | None = None

    def rounded(self, x_SF: Tensor) -> Tensor:
        """Return `x`, converted unless it has the dtype or products convert it faster."""
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
    """Return slices of consecutive rows that stay in a CPU's cache from one pass to the next.

    A single slice of all rows on a GPU; at least one slice.
    """
    count = len(x_NK)
    if x_NK.device.type != "cpu":
        return [slice(0, count)]
    row_bytes = max(x_NK.shape[1] * x_NK.element_size(), 1)
    most = min(max(_CACHED // row_bytes // _SHORT, 1) * _SHORT, _LONG)
    return [slice(low, min(low + most, count)) for low in range(0, max(count, 1), most)]


def next_slab(x_NK: Tensor, start: int) -> slice | None:
    """Return the slab that begins with row `start`; None at the end."""
    return next((rows for rows in row_slabs(x_NK) if start == rows.start < len(x_NK)), None)


def dense_rows(x: NodeFeatures, device: torch.device) -> Tensor:
    """Return node features as a dense `[n, F]` on `device`, for code that reads every entry."""
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
    """Return features without the values that dropout redraws per epoch, and these values.

    Autograd holds the values; `refill` puts them back.
    """
    if not isinstance(x, SparseRows) or x.block.weight is None or x.transposed.weight is None:
        return x, []
    bare = replace(
        x, block=replace(x.block, weight=None), transposed=replace(x.transposed, weight=None)
    )
    return bare, [x.block.weight, x.transposed.weight]


def refill(x: Any, held: Sequence[Tensor]) -> Any:
    """Return the features that `shell` was given."""
    if not isinstance(x, SparseRows) or not held:
        return x
    block, transposed = replace(x.block, weight=held[0]), replace(x.transposed, weight=held[1])
    return replace(x, block=block, transposed=transposed)


def head_matrix(*vectors_HC: Tensor) -> Tensor:
    """Return `[H * C, k * H]` for k sets of vectors: `z @ matrix` is each head's inner products."""
    given_kHC = torch.stack(vectors_HC)
    count, heads, channels = given_kHC.shape
    matrix_HCkH = given_kHC.new_zeros(heads, channels, count, heads)
    matrix_HCkH.diagonal(dim1=0, dim2=3).copy_(given_kHC.permute(2, 0, 1))
    return matrix_HCkH.view(heads * channels, count * heads)


def head_products(
    a_NK: Tensor,
    b_NK: Tensor,
    heads: int,
    minus_K: Tensor | None = None,
    grad_NK: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """Return `<a, b - minus>` per node and head, `[n, H]`, accumulated; see `kernels.head_dots`."""
    out_NH = a_NK.new_empty(a_NK.shape[0], heads, dtype=sum_type(a_NK.dtype))
    kernels.head_dots(a_NK, b_NK, out_NH, minus_K=minus_K, grad_NK=grad_NK, p=p)
    return out_NH


def head_scores(z_NK: Tensor, source_HC: Tensor, target_HC: Tensor) -> tuple[Tensor, ...]:
    """Return `<z, source>` and `<z, target>` per node and head, `[n, H]` each."""
    heads = len(source_HC)
    out_NH = source_HC.new_empty(len(z_NK), 2 * heads)
    if not kernels.takes_whole_blocks(z_NK.device):  # a GPU reads z once, in 16 bits too
        kernels.head_scores(z_NK, source_HC.detach(), target_HC.detach(), out_NH)
        return out_NH.split(heads, dim=1)
    matrix_KH = head_matrix(source_HC, target_HC)
    wide, scores = SlabScratch(matrix_KH.dtype), RowProduct(matrix_KH)
    for rows in row_slabs(z_NK):
        scores.write(wide.rounded(z_NK[rows]), out_NH[rows])
    return out_NH.split(heads, dim=1)


class ScoredProduct:
    """`x W^T` as GAT gathers it, and its `head_scores`, computed a slab of rows at a time.

    Args:
        dtype: of products, see `product`.

    Attributes:
        z_NK: the product; rows are valid once they are written.
        scores: an `[n, H]` for each set of vectors, valid likewise.
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
        """Return the writers of the slabs with rows from `first` on, and of the other slabs."""
        return (
            InTurn([rows for rows in self._slabs if rows.stop > first], self._write),
            InTurn([rows for rows in self._slabs if rows.stop <= first], self._write),
        )

    def write(self, progress: Progress) -> None:
        """Write all rows; `progress` is called after each slab."""
        for turn in self.turns():
            turn.rest(progress)

    def _write(self, rows: slice) -> None:
        self._weights.write(self._short.rounded(self._x_NF[rows]), self.z_NK[rows])
        if self.scores:
            self._scores.write(self._wide.rounded(self.z_NK[rows]), self._out_NH[rows])
