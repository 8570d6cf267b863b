"""Gradients of a GAT layer before and after its pass over the edges."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.features import NodeFeatures
from hpcgnn.sar.gat_passes import BackwardPass
from hpcgnn.sar.products import (
    ProductSum,
    RowProduct,
    SlabScratch,
    head_matrix,
    head_products,
    rounds_gathered,
    row_slabs,
    weight_gradient,
)
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.turns import Progress


class Gradients:
    """The gradients of a layer, accumulated over groups of heads by `AfterEdges`.

    Each slab of rows goes through all steps while it is in the cache.
    """

    def __init__(
        self,
        x: NodeFeatures,
        weight_KF: Tensor,
        source_HC: Tensor,
        target_HC: Tensor,
        edge_HD: Tensor | None,
        bias_K: Tensor | None,
        arrays: Arrays,
        *,
        with_x: bool,
    ) -> None:
        self.arrays = arrays
        self.inputs, self.weight_KF, self.bias_K = x, weight_KF, bias_K
        self.vectors, self.channels = (source_HC, target_HC), source_HC.shape[1]
        self.weight = torch.empty_like(weight_KF)
        self.source, self.target = torch.empty_like(source_HC), torch.empty_like(target_HC)
        self.edge = None if edge_HD is None else torch.empty_like(edge_HD)
        self.bias = None if bias_K is None else torch.empty_like(bias_K)
        self.x: Tensor | None = None
        self.with_x = with_x and isinstance(x, Tensor)

    def columns(self, heads: range) -> slice:
        """Return the columns of these heads among those of all heads."""
        return slice(heads.start * self.channels, heads.stop * self.channels)

    def before_edges(
        self,
        heads: range,
        grad_NK: Tensor,
        y_NK: Tensor,
        then: ReluDropout | None,
        dtype: torch.dtype | None,
        *,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return g, the gradient of attention plus bias, and `<g, attention>` by head `[n, H]`.

        Args:
            heads: the heads whose columns the matrices hold.
            grad_NK: gradient of the layer's output; overwritten by g if `in_place`.
            y_NK: the layer's output.
            dtype: of products; g is returned in the dtype in which GAT gathers it.
        """
        g_NK = grad_NK
        if then is not None and not in_place:
            g_NK = self.arrays.like(grad_NK)
        bias_K = None if self.bias_K is None else self.bias_K[self.columns(heads)]
        sums_K = grad_NK.new_zeros(grad_NK.shape[1], dtype=torch.float64)
        parts, found_NK = [], g_NK
        if dtype == torch.bfloat16 and rounds_gathered(g_NK):
            found_NK = self.arrays.like(g_NK, dtype)
        for rows in row_slabs(grad_NK):
            g_SK, y_SK = g_NK[rows], y_NK[rows]
            if then is None:
                parts.append(head_products(g_SK, y_SK, len(heads), bias_K))
            elif kernels.takes_whole_blocks(g_NK.device):
                then.of(rows).gradient(y_SK, grad_NK[rows], g_SK)
                parts.append(_products_before(then, g_SK, y_SK, len(heads), bias_K))
            else:  # a GPU does both at once
                parts.append(_products_before(then, grad_NK[rows], y_SK, len(heads), bias_K, g_SK))
            if bias_K is not None:
                sums_K += g_SK.sum(dim=0, dtype=bias_K.dtype)
            if found_NK is not g_NK:
                found_NK[rows] = g_SK
        if self.bias is not None:
            self.bias[self.columns(heads)] = sums_K.to(self.bias.dtype)
        return found_NK, torch.cat(parts)


class AfterEdges:
    """The gradients of a layer after its pass over the edges for some heads, slab by slab.

    `before` takes slabs whose rows are complete while the pass still waits for messages, `finish`
    all others. Each slab is processed once, and all are in order.

    Args:
        found: receives the gradients.
        run: the pass; `finish` drops its g and z.
        dtype: of products.
        overwrites_z: the gradient of x may be written over z.
    """

    def __init__(
        self,
        found: Gradients,
        heads: range,
        run: BackwardPass,
        dtype: torch.dtype | None,
        *,
        overwrites_z: bool = False,
    ) -> None:
        self.found, self.run, self.x, self.dtype = found, run, found.inputs, dtype
        self.part, self.columns = slice(heads.start, heads.stop), found.columns(heads)
        self.grad_z_NK, self.grad_scores_NH = run.grad_z_NK, run.grad_scores_NH
        self.slabs, sums = row_slabs(self.grad_z_NK), self.grad_z_NK.dtype
        self.several = len(self.slabs) > 1
        self.vectors, self.weights = ProductSum(sums), ProductSum(dtype or sums)
        vectors = [vector_HC[self.part] for vector_HC in found.vectors]
        self.scores = RowProduct(head_matrix(*vectors).t())
        self.wide = SlabScratch(sums, reused=self.several)
        self.of_grad, self.of_x = (SlabScratch(dtype, reused=self.several) for _ in range(2))
        self.into_x = RowProduct(found.weight_KF[self.columns], dtype)
        self.first = found.x is None  # of the groups of heads
        self.over_z = overwrites_z and isinstance(self.x, Tensor) and _fits(self.x, run.z_NK)
        self.done = 0  # rows
        self.owed: list[slice] = []  # slabs whose gradient of x has no memory yet

    def before(self, end: int, progress: Progress) -> None:
        """Process the slabs before row `end`, without taking memory."""
        if not self.several:
            return
        if self.over_z and self.first and self.found.with_x:
            self._take_x(self.run.z_NK)
        for rows in self.slabs:
            if rows.stop > end:
                return
            self._vectors(rows, self.run.z_NK)
            self._after_vectors(rows)
            self.done = rows.stop
            progress()

    def finish(self) -> None:
        """Process the remaining slabs, and write the gradients of the weights."""
        found, run = self.found, self.run
        _, _, z_NK = run.finished()
        if found.edge is not None and run.grad_edge_HD is not None:
            found.edge[self.part] = run.grad_edge_HD
        z: Tensor | None = z_NK
        rest = [rows for rows in self.slabs if rows.start >= self.done]
        if self.several and found.with_x and found.x is None:
            if not self.over_z:  # z is freed before the gradient is allocated
                for rows in rest:
                    self._vectors(rows, z_NK)
                z = None
                del z_NK
            self._take_x(z)
        for rows in self.owed:
            self._add_x(rows, self.of_grad.rounded(self.grad_z_NK[rows]))
        for rows in rest:
            if z is not None:
                self._vectors(rows, z)
            if not self.several:
                z = None
                del z_NK  # likewise freed
            self._after_vectors(rows)
        like_HC = found.vectors[0][self.part]
        found.source[self.part], found.target[self.part] = _diagonal_blocks(self.vectors, like_HC)
        if isinstance(self.x, Tensor):
            found.weight[self.columns] = self.weights.result(self.grad_z_NK.dtype)
        else:
            found.weight[self.columns] = weight_gradient(self.x, self.grad_z_NK, self.dtype)

    def _vectors(self, rows: slice, z_NK: Tensor) -> None:
        self.vectors.add(self.grad_scores_NH[rows], self.wide.rounded(z_NK[rows]))

    def _after_vectors(self, rows: slice) -> None:
        """Complete the gradient of z, and add what follows from it."""
        grad_SK = self.grad_z_NK[rows]
        self.scores.add(self.grad_scores_NH[rows], grad_SK)
        if isinstance(self.x, Tensor):
            grad_SK = self.of_grad.rounded(grad_SK)
            self.weights.add(grad_SK, self.of_x.rounded(self.x[rows]))
            if self.found.with_x:
                self._add_x(rows, grad_SK)

    def _add_x(self, rows: slice, grad_SK: Tensor) -> None:
        """Add the contribution of these rows of the gradient of z to the gradient of x."""
        if self.found.x is None and self.several:
            self.owed.append(rows)
            return
        if self.found.x is None:
            self.found.x = self.x.new_empty(self.x.shape)  # type: ignore[union-attr]
        if self.first:
            self.into_x.write(grad_SK, self.found.x[rows])
        else:
            self.into_x.add(grad_SK, self.found.x[rows])

    def _take_x(self, z_NK: Tensor | None) -> None:
        """Take memory for the gradient of x, written while z is read: over z, if given."""
        if not isinstance(self.x, Tensor):
            return
        if z_NK is None:
            self.found.x = self.found.arrays.like(self.x)
            return
        # Not a view, which would hold z and count as another reference to it.
        here = z_NK.storage_offset(), self.x.shape, (self.x.shape[1], 1)
        self.found.x = z_NK.new_empty(0).set_(z_NK.untyped_storage(), *here)


def _fits(x_NF: Tensor, z_NK: Tensor) -> bool:
    """Return whether a gradient of x fits into z and uses more than half of it."""
    same = z_NK.dtype == x_NF.dtype and z_NK.is_contiguous()
    return same and z_NK.shape[1] < 2 * x_NF.shape[1] <= 2 * z_NK.shape[1]


def _products_before(
    then: ReluDropout,
    g_NK: Tensor,
    y_NK: Tensor,
    heads: int,
    bias_K: Tensor | None,
    out_NK: Tensor | None = None,
) -> Tensor:
    """Return `<g, o - bias>` per node and head; where g is not 0, `then` made y of o = (1 - p) y.

    Args:
        out_NK: receives g; `g_NK` is then the gradient of the result of `then`.
    """
    kept = 1 - then.p
    bias_K = None if bias_K is None else bias_K.detach() / kept
    return head_products(g_NK, y_NK, heads, bias_K, out_NK, then.p).mul_(kept)


def _diagonal_blocks(sums: ProductSum, like_HC: Tensor) -> tuple[Tensor, Tensor]:
    """Return `sum_n grad[n, h] z[n, h, :]` for both halves of the scores: `[H, C]` each."""
    heads, channels = like_HC.shape
    all_HHC = sums.result(like_HC.dtype).view(2, heads, heads, channels)
    source_HC, target_HC = all_HHC.diagonal(dim1=1, dim2=2).transpose(1, 2).contiguous()
    return source_HC, target_HC
