"""Products of node features and weights outside autograd, for functions that rematerialize them."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph import SparseRows
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar.host_rows import HostRows
from hpcgnn.sar.short import readable

NodeFeatures = Tensor | SparseRows | HostRows


def product(x: NodeFeatures, weight_GF: Tensor, short: torch.dtype | None = None) -> Tensor:
    """`x W^T`: `[n, G]`; of dense operands rounded to `short`, if given, and then `readable`."""
    if isinstance(x, Tensor):
        if short is None:
            return x @ weight_GF.t()
        return readable(x.to(short) @ weight_GF.to(short).t())
    if isinstance(x, HostRows):
        return readable(x.times(weight_GF, short))
    weight_FG = weight_GF.t().contiguous()
    out_NG = weight_FG.new_zeros(x.shape[0], weight_FG.shape[1])
    kernels.spmm(x.block, weight_FG, out_NG)
    return out_NG


def weight_gradient(x: NodeFeatures, grad_NG: Tensor, short: torch.dtype | None = None) -> Tensor:
    """Gradient of the weights: `[G, F]` from `[n, G]`; `short` as in `product`."""
    if isinstance(x, Tensor):
        if short is None:
            return grad_NG.t() @ x
        return (grad_NG.to(short).t() @ x.to(short)).to(grad_NG.dtype)
    if isinstance(x, HostRows):
        return x.weight_gradient(grad_NG, short)
    grad_NG = grad_NG.contiguous()
    grad_FG = grad_NG.new_zeros(x.shape[1], grad_NG.shape[1])
    kernels.spmm(x.transposed, grad_NG, grad_FG)
    return grad_FG.t()


def head_matrix(vector_HC: Tensor) -> Tensor:
    """Block-diagonal `[H * C, H]`: `z @ matrix` is each head's inner product with its vector."""
    return torch.block_diag(*vector_HC).t().contiguous()


def head_products(a_NK: Tensor, b_NK: Tensor, heads: int) -> Tensor:
    """`<a, b>` per node and head: `[n, H]`, in slabs so that no product of full size is kept."""
    dtype = sum_type(a_NK.dtype)
    out_NH = a_NK.new_empty(a_NK.shape[0], heads, dtype=dtype)
    for rows in _slabs(a_NK):
        product_RK = a_NK[rows].to(dtype) * b_NK[rows]
        out_NH[rows] = product_RK.view(product_RK.shape[0], heads, -1).sum(-1)
    return out_NH


def head_scores(z_NK: Tensor, vector_HC: Tensor) -> Tensor:
    """`<z, vector>` per node and head in the type of sums: `[n, H]`."""
    if z_NK.dtype == vector_HC.dtype:
        return z_NK @ head_matrix(vector_HC)
    matrix_KH = head_matrix(vector_HC)
    out_NH = vector_HC.new_empty(z_NK.shape[0], len(vector_HC))
    for rows in _slabs(z_NK):
        torch.mm(z_NK[rows].to(matrix_KH.dtype), matrix_KH, out=out_NH[rows])
    return out_NH


def _slabs(x_NK: Tensor) -> list[slice]:
    length = 4096 if x_NK.device.type == "cpu" else 1 << 18
    return [slice(low, low + length) for low in range(0, x_NK.shape[0], length)]
