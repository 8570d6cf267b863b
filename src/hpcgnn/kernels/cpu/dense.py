"""Dense products in C++: packing of weights, and calls of the loops in product.cpp."""

from __future__ import annotations

import platform
from ctypes import byref, c_int64
from functools import cache

import torch
from torch import Tensor

from hpcgnn import system
from hpcgnn.kernels.cpu.library import (
    function,
    instruction_set,
    matrix,
    pointer,
    rounds_in_products,
)


@cache
def _is_slow_for_library() -> bool:
    """Return whether MKL, torch's library, avoids AVX-512 here, as it does on AMD processors.

    On an Intel Xeon (Cascade Lake) it is faster than our loops, by a tenth to a half.
    """
    return system.processor()[0] == "AuthenticAMD"


@cache
def has_bf16_products() -> bool:
    """Return whether the library's products in bfloat16 are faster here than those in float32.

    On x86 that needs AVX-512 BF16; elsewhere it was not measured and is assumed.
    """
    return platform.machine() not in ("x86_64", "AMD64") or rounds_in_products()


def is_fast(dtype: torch.dtype) -> bool:
    """Return whether our loops are faster than the library's here.

    They need 32 vector registers of 64 bytes. In bfloat16 the library's are as fast, but need
    rounded copies of their operands.
    """
    is_bf16 = dtype == torch.bfloat16
    if instruction_set() != "avx512" or (is_bf16 and not rounds_in_products()):
        return False
    return _is_slow_for_library()


@cache
def _packing(name: str) -> tuple[int, int]:
    panel, deep = c_int64(), c_int64()
    function(name)(byref(panel), byref(deep))
    return panel.value, deep.value


def pack_weights(weight_FG: Tensor) -> Tensor:
    """Return weights in panels of columns, for a few hundred rows each, as product.cpp reads them.

    In bfloat16 two consecutive rows share a word.
    """
    if weight_FG.dtype == torch.float32:
        return _panels(weight_FG, *_packing("packing"))
    (height, width), paired_FG = weight_FG.shape, weight_FG
    if height % 2:
        paired_FG = torch.cat([weight_FG, weight_FG.new_zeros(1, width)])
    words = torch.stack([paired_FG[::2], paired_FG[1::2]], dim=2).view(torch.int32)
    return _panels(words[..., 0], *_packing("bf16_packing"))


def _panels(weight_FG: Tensor, panel: int, deep: int) -> Tensor:
    (height, width), count = weight_FG.shape, -(-weight_FG.shape[1] // panel)
    padded = weight_FG.new_zeros(height, count * panel)
    padded[:, :width] = weight_FG
    panels = [
        padded[low : low + deep].unflatten(1, (count, panel)).transpose(0, 1).flatten()
        for low in range(0, height, deep)
    ]
    return torch.cat(panels) if panels else padded.flatten()


def _is_bf16(x: Tensor) -> c_int64:
    return c_int64(x.dtype == torch.bfloat16)


def product(
    x: Tensor, packed: Tensor, out: Tensor, is_bf16: bool, adds: bool, start: Tensor | None
) -> None:
    given = (matrix(x), _is_bf16(x), pointer(packed), matrix(out))
    function("bf16_product" if is_bf16 else "product")(
        *given,
        *((_is_bf16(out),) if is_bf16 else ()),
        c_int64(x.shape[0]),
        c_int64(x.shape[1]),
        c_int64(out.shape[1]),
        c_int64(adds),
        pointer(start),
        c_int64(torch.get_num_threads()),
    )


def add_outer_products(a: Tensor, b: Tensor, out: Tensor, is_bf16: bool) -> None:
    function("bf16_outer_products" if is_bf16 else "outer_products")(
        matrix(a),
        _is_bf16(a),
        matrix(b),
        _is_bf16(b),
        matrix(out),
        c_int64(a.shape[0]),
        c_int64(a.shape[1]),
        c_int64(b.shape[1]),
        c_int64(torch.get_num_threads()),
    )
