"""Building the device guard, and loading it: before torch, which looks for devices once."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
VARIABLE = "HPCGNN_FAKE_DEVICE"  # where `built` tells the processes under test what to load


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("no torch")
    return Path(found.origin).parent


def built(folder: Path) -> Path:
    """The library, compiled on first use; `folder` keeps it."""
    torch = _torch()
    key = hashlib.sha256(SOURCE.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()[:16]
    library = folder / f"device-guard-{key}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-fPIC", "-shared"]
        command += [f"-I{torch / 'include'}", str(SOURCE), "-o", str(made)]
        command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{SOURCE} did not compile:\n{done.stderr}")
        made.replace(library)
    return library


def load() -> None:
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(os.environ[VARIABLE])
