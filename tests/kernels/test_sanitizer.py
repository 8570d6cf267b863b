"""The sanitizers of env/sanitize.sh detect mistakes inside the kernels."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest
import torch

from hpcgnn.kernels.block import Block
from hpcgnn.kernels.cpu.backend import spmm
from hpcgnn.kernels.cpu.library import Matrix, edges, function, matrix

pytestmark = pytest.mark.skipif(
    "HPCGNN_SANITIZE" not in os.environ,
    reason="the library has sanitizers in `make test-sanitized`",
)


def block(column: int) -> Block:
    begin = torch.arange(3)
    return Block(0, 3, None, begin[:2], begin[1:], torch.tensor([0, column], dtype=torch.int32))


def read_beyond(width: int) -> None:
    spmm(block(3), torch.zeros(3, width), torch.zeros(2, width), (0, 2), True)


def write_beyond(width: int) -> None:
    spmm(block(2), torch.zeros(3, width), torch.zeros(1, width), (0, 2), True)


def multiply_beyond(width: int) -> None:
    given, x, out = block(2), torch.zeros(3, width), torch.zeros(2, width)
    far = Matrix(x.data_ptr(), 1 << 62)
    few = ctypes.byref(edges(given, (0, 2)))
    function("spmm")(few, 0, far, None, matrix(out), ctypes.c_int64(width), ctypes.c_int64(1))


@pytest.mark.parametrize("width", [1, 24])
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (read_beyond, "heap-buffer-overflow"),
        (write_beyond, "heap-buffer-overflow"),
        (multiply_beyond, "signed integer overflow"),
    ],
)
def test_mistakes_end_the_process(
    mistake: Callable[[int], None], said: str, width: int, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        try:
            mistake(width)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status != 0
    assert said in capfd.readouterr().err
