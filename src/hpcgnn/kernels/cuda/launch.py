"""CUDA kernels: sources are assembled, compiled for the GPU on first use, and launched.

The sources include no files but each other, so the whole text of a module is one string, and a
change in any of its files gives another module in CuPy's cache of compiled kernels.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError, KernelError
from hpcgnn.kernels.block import Block

FOLDER = Path(__file__).with_name("src")
OPTIONS = ("-std=c++17",)
THREADS = 128
WARP = 32
_CUPY = (14, 2)  # older ones never find templates with several parameters in their cache
_LOCK = "hpcgnn.lock"
_NUMBERS = 1 << 12  # that are kept
_REMEDIES = (  # by what CuPy, NVRTC or the driver says
    (
        re.compile(r"no.?kernel.?image|NO_BINARY|(INVALID|UNSUPPORTED)_PTX", re.IGNORECASE),
        "the GPU or its driver (nvidia-smi) does not suit this CuPy: install the one for the "
        "driver's version of CUDA; ",
    ),
    (
        re.compile(r"(could not|cannot) open|no such file|libnvrtc|not found", re.IGNORECASE),
        "CuPy does not find CUDA's compiler or headers: install hpcgnn[cuda] (CUDA 12) or "
        "hpcgnn[cuda13]; ",
    ),
)
_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)


@cache
def source(name: str) -> str:
    """Return the text of `name`.cu with the files that it includes inserted, each once."""
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
    """Launch kernel `expression` of `name`.cu on torch's current stream of `device`.

    Args:
        expression: the kernel with its template arguments, like `spmm<float, float, 4, true>`.
        blocks: numbers of blocks in x and y, of 128 threads each.
        arguments: values with exactly the types of the kernel's parameters; pointers as `uintp`.
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
        _kernel(name, expression, device)(blocks, (THREADS,), tuple(arguments))


def check_library() -> None:
    """Raise InputError if CuPy, which compiles and launches the kernels, can't be used."""
    _cupy()


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
    """Raise InputError if this version of CuPy is too old."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < _CUPY:
        oldest = ".".join(map(str, _CUPY))
        raise InputError(f"--device cuda needs CuPy {oldest} or newer", value=version)


@cache
def _kernel(name: str, expression: str, device: torch.device) -> Any:
    """Return the kernel, loaded on the GPU; one process of a machine compiles it for all.

    Raises:
        torch.OutOfMemoryError: the GPU has no memory for its code.
        KernelError: it can't be compiled or loaded.
    """
    cupy = _cupy()
    with loading(expression, device), _alone(_cache_folder()):
        module = cupy.RawModule(code=source(name), options=OPTIONS, name_expressions=(expression,))
        function = module.get_function(expression)
        _ = function.num_regs  # the code is loaded when this is first read
    return function


@contextmanager
def loading(expression: str, device: torch.device) -> Iterator[None]:
    """Turn CuPy's errors in compiling and loading a kernel into ours."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if "out of memory" in text.lower():
            raise torch.OutOfMemoryError(f"the code of kernel {expression}: {text}") from None
        remedy = next((advice for sign, advice in _REMEDIES if sign.search(text)), "")
        raise KernelError(
            f"the GPU kernel {expression} can't be compiled or loaded on {_named(device)}: "
            f"{type(error).__name__}: {text[:300]}: {remedy}`hpcgnn doctor` tests one kernel of "
            "each kind"
        ) from error


def _named(device: torch.device) -> str:
    with suppress(Exception):  # the GPU itself may have failed
        return f"{device} ({torch.cuda.get_device_properties(device).name})"
    return str(device)


def _cache_folder() -> Path:
    """Return the folder of CuPy's cache of compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Admit one process at a time, if they share the folder and its file system has locks."""
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
    """A torch stream, by its address, as an object of the CUDA stream protocol."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def pointer(tensor: Tensor | None) -> np.uintp:
    """Return the address of a tensor, 0 for None."""
    return np.uintp(0 if tensor is None else tensor.data_ptr())


@lru_cache(maxsize=_NUMBERS)
def int32(value: int) -> np.int32:
    """Return the number as NumPy's, which takes longer to make than to find again."""
    return np.int32(value)


@lru_cache(maxsize=_NUMBERS)
def int64(value: int) -> np.int64:
    """Like `int32`."""
    return np.int64(value)


def real(dtype: torch.dtype) -> type[np.floating[Any]]:
    """Return the NumPy type of a kernel parameter in the accumulation dtype."""
    return np.float64 if dtype == torch.float64 else np.float32


def matrix(tensor: Tensor | None) -> tuple[np.uintp, np.int64]:
    """Return the address and the row stride of a matrix."""
    return pointer(tensor), int64(0 if tensor is None else tensor.stride(0))


def matrices(*tensors: Tensor) -> tuple[np.generic, ...]:
    """Return the address and the row stride of each matrix."""
    return tuple(argument for tensor in tensors for argument in matrix(tensor))


def edges(block: Block, rows: tuple[int, int], longest: int) -> tuple[np.generic, ...]:
    """Return the arguments of the macro EDGES; rows of more than `longest` edges are skipped."""
    return (*block.derived(_Edges()), *map(int64, (*rows, longest)))


@dataclass(frozen=True)
class _Edges:
    """The arguments of the macro EDGES that are the same in every launch."""

    def build(self, block: Block, /) -> tuple[np.generic, ...]:
        arrays = (block.rows, block.begin, block.end, block.columns)
        return (*map(pointer, arrays), int64(block.column_offset))
