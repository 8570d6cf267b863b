"""CUDA sources as functions: assembled, compiled for the GPU at hand on first use, and launched.

The sources name no files but each other, so the whole text of a module is one string, and a change
in any of its files gives another module in CuPy's cache of compiled kernels.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.kernels.block import Block

FOLDER = Path(__file__).with_name("src")
OPTIONS = ("-std=c++17",)
THREADS = 128
WARP = 32
_CUPY = (14, 2)  # before it, templates with several parameters are never found in CuPy's cache
_LOCK = "hpcgnn.lock"
_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)


@cache
def source(name: str) -> str:
    """The text of `name`.cu with the files it includes, each once, in place."""
    seen: set[Path] = set()

    def text(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        lines = path.read_text(encoding="utf-8").replace("#pragma once\n", "")
        return _INCLUDE.sub(lambda match: text((path.parent / match[1]).resolve()), lines)

    return text(FOLDER / f"{name}.cu")


def launch(
    name: str,
    expression: str,
    blocks: tuple[int, int],
    arguments: Sequence[np.generic],
    device: torch.device,
) -> None:
    """Start kernel `expression` of `name`.cu on torch's current stream of `device`.

    Args:
        expression: the kernel with its template arguments, like `spmm<float, float, 4, true>`.
        blocks: of 128 threads each, in x and y.
        arguments: with exactly the types of the kernel's parameters; pointers as `uintp`.
    """
    _start(name, expression, blocks, arguments, device)


def _start(
    name: str,
    expression: str,
    blocks: tuple[int, int],
    arguments: Sequence[np.generic],
    device: torch.device,
) -> None:
    cupy = _cupy()
    with cupy.cuda.Device(device.index), _stream(torch.cuda.current_stream(device).cuda_stream):
        _kernel(name, expression)(blocks, (THREADS,), tuple(arguments))


@cache
def _cupy() -> ModuleType:
    cache = os.environ.get("CUPY_CACHE_DIR")
    if cache == "":
        del os.environ["CUPY_CACHE_DIR"]
    elif cache is not None and not Path(cache).is_absolute():
        raise InputError("CUPY_CACHE_DIR must be absolute: programs are run from it", value=cache)
    try:
        import cupy
    except ImportError as error:
        raise InputError(
            "--device cuda needs CuPy; install hpcgnn[cuda] (CUDA 12) or hpcgnn[cuda13], "
            f"or use --device cpu: {error}"
        ) from error
    check_version(cupy.__version__)
    return cupy


def check_version(version: str) -> None:
    """Raise InputError where this CuPy is too old."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < _CUPY:
        oldest = ".".join(map(str, _CUPY))
        raise InputError(f"--device cuda needs CuPy {oldest} or newer", value=version)


@cache
def _kernel(name: str, expression: str) -> Any:
    """The kernel in the GPU's memory, compiled by one process of a machine and read by the others.

    Raises:
        torch.OutOfMemoryError: the GPU has no room for its code.
        HpcgnnError: it can't be compiled or loaded.
    """
    cupy = _cupy()
    with loading(expression), _alone(_cache_folder()):
        module = cupy.RawModule(code=source(name), options=OPTIONS, name_expressions=(expression,))
        function = module.get_function(expression)
        _ = function.num_regs  # until it is asked for, nothing is loaded
    return function


@contextmanager
def loading(expression: str) -> Iterator[None]:
    """Around what CuPy does to a kernel before its first launch: its errors become ours."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if "out of memory" in text.lower():
            raise torch.OutOfMemoryError(f"the code of kernel {expression}: {text}") from None
        raise HpcgnnError(
            f"the GPU kernel {expression} can't be compiled or loaded ({type(error).__name__}: "
            f"{text[:300]}): `hpcgnn doctor` tries one of each kind"
        ) from error


def _cache_folder() -> Path:
    """Where CuPy keeps what it has compiled."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where processes share the folder and its file system can lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _stream(pointer: int) -> Any:
    return _cupy().cuda.Stream.from_external(_Handle(pointer))


class _Handle:
    """A stream of torch's by its address, as the CUDA stream protocol passes it on."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def pointer(tensor: Tensor | None) -> np.uintp:
    """The address of a tensor, 0 for None."""
    return np.uintp(0 if tensor is None else tensor.data_ptr())


def real(dtype: torch.dtype) -> type[np.floating[Any]]:
    """The type of a parameter that is in the type of sums."""
    return np.float64 if dtype == torch.float64 else np.float32


def matrix(tensor: Tensor | None) -> tuple[np.uintp, np.int64]:
    """Address and row stride."""
    return pointer(tensor), np.int64(0 if tensor is None else tensor.stride(0))


def matrices(*tensors: Tensor) -> tuple[np.generic, ...]:
    """Address and row stride of each."""
    return tuple(argument for tensor in tensors for argument in matrix(tensor))


def edges(block: Block, rows: tuple[int, int], longest: int) -> tuple[np.generic, ...]:
    """What the macro EDGES names; rows with more than `longest` edges are left out."""
    return (
        *map(pointer, (block.rows, block.begin, block.end, block.columns)),
        *map(np.int64, (block.column_offset, *rows, longest)),
    )
