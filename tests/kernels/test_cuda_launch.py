"""Loading kernels on a GPU: supported releases of CuPy, and its errors."""

from __future__ import annotations

import fcntl

import pytest
import torch

from hpcgnn.errors import InputError, KernelError
from hpcgnn.kernels.cuda import launch


@pytest.mark.parametrize("version", ["14.1.1", "13.9", "9.0.0b1", "next"])
def test_an_old_cupy_is_refused(version):
    with pytest.raises(InputError, match=r"CuPy 14\.2 or newer"):
        launch.check_version(version)


@pytest.mark.parametrize("version", ["14.2.0", "14.10", "15.0.0a1"])
def test_a_new_cupy_is_accepted(version):
    launch.check_version(version)


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", torch.OutOfMemoryError, "spmm<float>"),
        ("NVRTC_ERROR_COMPILATION (6)", KernelError, r"spmm<float>.*cuda:1.*NVRTC_ERROR.*doctor"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel\nimage", KernelError, "GPU or its driver"),
        ('catastrophic error: cannot open source file "cuda_fp16.h"', KernelError, "headers: inst"),
    ],
)
def test_errors_of_loading_a_kernel_are_ours(text, kind, line):
    with (
        pytest.raises(kind, match=line) as caught,
        launch.loading("spmm<float>", torch.device("cuda", 1)),
    ):
        raise RuntimeError(text)
    assert "\n" not in str(caught.value)


def test_one_process_compiles_at_a_time(tmp_path):
    folder = tmp_path / "cache"
    with (
        launch._alone(folder),
        (folder / launch._LOCK).open("a") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "file").touch()
    with launch._alone(tmp_path / "file" / "cache"):
        pass  # this folder can't exist, so every process compiles for itself
