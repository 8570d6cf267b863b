"""The CUDA kernels on the CPU: their sources compiled against emulator.h and called by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hpcgnn.kernels.cuda.launch import THREADS, source
from hpcgnn.kernels.cuda.shapes import instances

HERE = Path(__file__).parent
HEADER, MACHINE = HERE / "emulator.h", HERE / "emulator.cpp"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas", "-Wno-unused", "-Wno-psabi"]

BEFORE = '#include "emulator.h"\n'
AFTER = """
static inline float widen(f16 x) {
    _Float16 y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline void narrow(float x, f16& y) {
    const _Float16 rounded = x;
    memcpy(&y, &rounded, sizeof y);
}
static inline float widen(bf16 x) { return __int_as_float(static_cast<int>(x.bits) << 16); }
static inline void narrow(float x, bf16& y) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
"""
INSTANCE = """
extern "C" const char* run%d(unsigned x, unsigned y, unsigned threads, unsigned seed,
                             void** given) {
    return emulator::launch(%s, x, y, threads, seed, given);
}
"""
# All instances of the other sources are compiled together, which takes half as long as singly.
LARGE = ("gat_forward", "gat_backward", "gatv2_forward", "gatv2_backward")


class Emulator:
    """A replacement of `hpcgnn.kernels.cuda.launch._start`.

    Args:
        folder: where compiled kernels are kept.

    Attributes:
        seed: seed of the order in which blocks and threads run; results must not depend on it.
        launched: every kernel expression that was run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seed = 0
        self.launched: list[str] = []
        self._functions: dict[str, ctypes._NamedFuncPointer] = {}

    def start(
        self,
        name: str,
        expression: str,
        blocks: tuple[int, int],
        arguments: Sequence[np.generic],
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        assert expression in instances()[name]
        self.launched.append(expression)
        values = [np.array([value]) for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        failure = self._function(name, expression)(*blocks, THREADS, self.seed, pointers)
        if failure is not None:
            raise RuntimeError(f"{expression}: {failure.decode()}")

    def _function(self, name: str, expression: str) -> ctypes._NamedFuncPointer:
        if expression not in self._functions:
            if not self._functions:
                ctypes.CDLL(str(self._library(MACHINE.read_text())), mode=ctypes.RTLD_GLOBAL)
            together = [expression] if name in LARGE else sorted(instances()[name])
            calls = "".join(INSTANCE % instance for instance in enumerate(together))
            library = ctypes.CDLL(str(self._library(f"{BEFORE}{source(name)}{AFTER}{calls}")))
            function = getattr(library, f"run{together.index(expression)}")
            function.restype = ctypes.c_char_p
            self._functions[expression] = function
        return self._functions[expression]

    def _library(self, code: str) -> Path:
        key = hashlib.sha256((code + HEADER.read_text() + str(FLAGS)).encode()).hexdigest()[:24]
        library = self.folder / f"{key}.so"
        if not library.exists():
            _compile(library.with_suffix(".cpp"), code, library, "-I", str(self._headers))
        return library

    @cached_property
    def _headers(self) -> Path:
        """Return a folder with emulator.h precompiled, which saves a third of the time."""
        key = hashlib.sha256((HEADER.read_text() + str(FLAGS)).encode()).hexdigest()[:24]
        folder = self.folder / f"headers-{key}"
        folder.mkdir(exist_ok=True)
        text, out = f'#include "{HEADER}"\n', folder / f"{HEADER.name}.gch"
        _compile(folder / HEADER.name, text, out, "-x", "c++-header")
        return folder


def _compile(path: Path, text: str, out: Path, *options: str) -> None:
    """Compile `text`, written to `path`, unless `out` exists: ranks and workers share the file."""
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return
        path.write_text(text)
        made = out.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), *FLAGS, *options, "-o", str(made), str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{path} did not compile:\n{result.stderr}")
        made.replace(out)
