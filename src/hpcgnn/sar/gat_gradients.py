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


class Gradients:
    """The gradients of a layer, accumulated over groups of heads.

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

    def add(
        self,
        heads: range,
        run: BackwardPass,
        dtype: torch.dtype | None,
        *,
        overwrites_z: bool = False,
    ) -> None:
        """Add the gradients that a pass over the edges computed for these heads.

        Args:
            dtype: of products.
            overwrites_z: the gradient of x may be written over z.
        """
        part, columns = slice(heads.start, heads.stop), self.columns(heads)
        source_HC, target_HC = (vector_HC[part] for vector_HC in self.vectors)
        grad_z_NK, grad_scores_NH, z_NK = run.finished()
        if self.edge is not None and run.grad_edge_HD is not None:
            self.edge[part] = run.grad_edge_HD
        scores = RowProduct(head_matrix(source_HC, target_HC).t())
        x, weight_KF = self.inputs, self.weight_KF[columns]
        slabs, sums = row_slabs(grad_z_NK), grad_z_NK.dtype
        vectors, weights = ProductSum(sums), ProductSum(dtype or sums)
        first, several = self.x is None, len(slabs) > 1
        wide = SlabScratch(grad_z_NK.dtype, reused=several)
        of_grad, of_x = (SlabScratch(dtype, reused=several) for _ in range(2))
        into_x = RowProduct(weight_KF, dtype)
        z: Tensor | None = z_NK
        if several and self.with_x and first and isinstance(x, Tensor):
            if not (overwrites_z and _fits(x, z_NK)):  # z is freed before the gradient is allocated
                for rows in slabs:
                    vectors.add(grad_scores_NH[rows], wide.rounded(z_NK[rows]))
                z = None
                del z_NK
            self.x = self._like_x(x, z)
        for rows in slabs:
            grad_SK = grad_z_NK[rows]
            if z is not None:
                vectors.add(grad_scores_NH[rows], wide.rounded(z[rows]))
            if not several:
                z = None
                del z_NK  # likewise freed
            scores.add(grad_scores_NH[rows], grad_SK)
            if isinstance(x, Tensor):
                grad_SK = of_grad.rounded(grad_SK)
                weights.add(grad_SK, of_x.rounded(x[rows]))
                if self.with_x:
                    self._add_x(rows, x, grad_SK, into_x, first=first)
        self.source[part], self.target[part] = _diagonal_blocks(vectors, source_HC)
        if isinstance(x, Tensor):
            self.weight[columns] = weights.result(grad_z_NK.dtype)
        else:
            self.weight[columns] = weight_gradient(x, grad_z_NK, dtype)

    def _add_x(
        self,
        rows: slice,
        x_NF: Tensor,
        grad_SK: Tensor,
        weights: RowProduct,
        *,
        first: bool,
    ) -> None:
        """Add the contribution of these rows of the gradient of z to the gradient of x."""
        if self.x is None:
            self.x = x_NF.new_empty(x_NF.shape)
        x_SF = self.x[rows]
        if first:
            weights.write(grad_SK, x_SF)
        else:
            weights.add(grad_SK, x_SF)

    def _like_x(self, x_NF: Tensor, z_NK: Tensor | None) -> Tensor:
        """Return an array for the gradient of x, written while z is read: over z, if given."""
        if z_NK is None:
            return self.arrays.like(x_NF)
        # Not a view, which would hold z and count as another reference to it.
        here = z_NK.storage_offset(), x_NF.shape, (x_NF.shape[1], 1)
        return z_NK.new_empty(0).set_(z_NK.untyped_storage(), *here)


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
