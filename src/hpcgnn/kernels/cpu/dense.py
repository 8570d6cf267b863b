"""Dense products in C++: packs weights and calls the loops of product.cpp."""

from __future__ import annotations

from ctypes import byref, c_int64
from functools import cache

import torch
from torch import Tensor

from hpcgnn import system
from hpcgnn.kernels.cpu.library import function, instruction_set, matrix, pointer


@cache
def _is_slow_for_library() -> bool:
    """Whether MKL, torch's library, leaves AVX-512 out here, as it does on AMD's processors."""
    return system.processor()[0] == "AuthenticAMD"


def is_fast() -> bool:
    """Whether these are faster than the library's here: vectors of 64 bytes, 32 registers."""
    return instruction_set() == "avx512" and _is_slow_for_library()


@cache
def _packing() -> tuple[int, int]:
    panel, deep = c_int64(), c_int64()
    function("packing")(byref(panel), byref(deep))
    return panel.value, deep.value


def pack_weights(weight_FG: Tensor) -> Tensor:
    """Panels of columns, for a few hundred rows each: as product.cpp reads them."""
    panel, deep = _packing()
    (height, width), count = weight_FG.shape, -(-weight_FG.shape[1] // panel)
    padded = weight_FG.new_zeros(height, count * panel)
    padded[:, :width] = weight_FG
    panels = [
        padded[low : low + deep].unflatten(1, (count, panel)).transpose(0, 1).flatten()
        for low in range(0, height, deep)
    ]
    return torch.cat(panels) if panels else padded.flatten()


def product(x: Tensor, packed: Tensor, out: Tensor, adds: bool, start: Tensor | None) -> None:
    function("product")(
        matrix(x),
        pointer(packed),
        matrix(out),
        c_int64(x.shape[0]),
        c_int64(x.shape[1]),
        c_int64(out.shape[1]),
        c_int64(adds),
        pointer(start),
        c_int64(torch.get_num_threads()),
    )


def add_outer_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    function("outer_products")(
        matrix(a),
        matrix(b),
        matrix(out),
        c_int64(a.shape[0]),
        c_int64(a.shape[1]),
        c_int64(b.shape[1]),
        c_int64(torch.get_num_threads()),
    )
