"""Reuse of the memory of large arrays."""

from __future__ import annotations

import gc

import pytest
import torch

from hpcgnn.graph.arrays import Arrays

CPU = torch.device("cpu")
MEGA = 1 << 20


def array(arrays: Arrays, megabytes: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = int(megabytes * MEGA) // (64 * dtype.itemsize)
    return arrays.empty(rows, 64, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_is_reused_once_unreferenced(dtype):
    arrays = Arrays()
    x = array(arrays, 2, dtype)
    assert x.is_contiguous() and x.dtype == dtype and x._base is None
    place, row, leaf = x.data_ptr(), x[5], x.requires_grad_()
    y = (leaf * 2).sum()
    del x, leaf
    assert arrays.unused_bytes == 0  # a row and autograd still reference it
    del row, y
    gc.collect()
    assert arrays.unused_bytes == 2 * MEGA
    assert array(arrays, 2).data_ptr() == place  # of any type
    assert array(arrays, 1.9).data_ptr() == place  # and a little smaller


def test_unused_memory_never_raises_the_peak():
    arrays = Arrays()
    several = [array(arrays, 4), array(arrays, 4), array(arrays, 2)]
    first = several[0].data_ptr()
    del several
    assert arrays.unused_bytes == 10 * MEGA
    large = array(arrays, 6)  # fits none of them
    assert arrays.unused_bytes <= 4 * MEGA
    del large
    assert arrays.unused_bytes <= 10 * MEGA
    assert array(arrays, 4).data_ptr() != first or arrays.unused_bytes <= 6 * MEGA


def test_small_arrays_do_not_take_the_memory_of_large_ones():
    arrays = Arrays()
    several = [array(arrays, 8), array(arrays, 4), array(arrays, 4)]
    place = several[0].data_ptr()
    del several
    small = [array(arrays, 2), array(arrays, 2)]  # fit neither
    assert arrays.unused_bytes == 12 * MEGA
    assert array(arrays, 8).data_ptr() == place
    del small


def test_small_arrays_are_not_kept():
    arrays = Arrays()
    small = array(arrays, 0.5)
    del small
    assert arrays.unused_bytes == 0


def test_arrays_outlive_their_pool():
    arrays = Arrays()
    x = array(arrays, 2).fill_(3)
    del arrays
    gc.collect()
    assert float(x.sum()) == 3 * x.numel()
