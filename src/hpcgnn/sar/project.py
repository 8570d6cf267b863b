"""Products of node features and weights outside autograd, for functions that rematerialize them."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph import SparseRows

NodeFeatures = Tensor | SparseRows


def product(x: NodeFeatures, weight_GF: Tensor) -> Tensor:
    """`x W^T`: `[n, G]`."""
    if isinstance(x, Tensor):
        return x @ weight_GF.t()
    weight_FG = weight_GF.t().contiguous()
    out_NG = weight_FG.new_zeros(x.shape[0], weight_FG.shape[1])
    kernels.spmm(x.block, weight_FG, out_NG)
    return out_NG


def weight_gradient(x: NodeFeatures, grad_NG: Tensor) -> Tensor:
    """Gradient of the weights: `[G, F]` from `[n, G]`."""
    if isinstance(x, Tensor):
        return grad_NG.t() @ x
    grad_NG = grad_NG.contiguous()
    grad_FG = grad_NG.new_zeros(x.shape[1], grad_NG.shape[1])
    kernels.spmm(x.transposed, grad_NG, grad_FG)
    return grad_FG.t()


def head_matrix(vector_HC: Tensor) -> Tensor:
    """Block-diagonal `[H * C, H]`: `z @ matrix` is each head's inner product with its vector."""
    return torch.block_diag(*vector_HC).t().contiguous()


def head_products(a_NK: Tensor, b_NK: Tensor, heads: int) -> Tensor:
    """`<a, b>` per node and head: `[n, H]`, in slabs so that no product of full size is kept."""
    out_NH = a_NK.new_empty(a_NK.shape[0], heads)
    for low in range(0, a_NK.shape[0], 4096):
        rows = slice(low, low + 4096)
        product_RK = a_NK[rows] * b_NK[rows]
        out_NH[rows] = product_RK.view(product_RK.shape[0], heads, -1).sum(-1)
    return out_NH
