from __future__ import annotations

import shutil

import pytest

from hpcgnn.kernels import checks
from hpcgnn.kernels.cuda import backend as cuda
from hpcgnn.kernels.cuda import launch
from tests.kernels.emulator import Emulator


@pytest.fixture
def emulated(monkeypatch, pytestconfig) -> Emulator:
    """During this test, kernels on CPU tensors are the CUDA sources, run by the emulator."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the CUDA sources with")
    emulator = Emulator(pytestconfig.cache.mkdir("emulator"))
    monkeypatch.setattr(launch, "_start", emulator.start)
    monkeypatch.setattr(checks, "REAL", checks.REAL + checks.HALF_PRECISION)
    for face in ("sums", "gat", "chunks", "dropout"):
        monkeypatch.setattr(f"hpcgnn.kernels.{face}.backend", lambda device: cuda)
    return emulator
