"""The process's surroundings: memory allocator, programs of the machine."""

from __future__ import annotations

import ctypes
import os
import shutil

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 1 << 20  # bytes
_SWITCH, _HUGE = "HPCGNN_ALLOCATION", "THP_MEM_ALLOC_ENABLE"


def set_up() -> None:
    """Huge pages for torch's large tensors, and freed arrays go back to the system at once.

    Faults of 4 KiB pages take longer than the kernels that meet them. glibc by itself keeps arrays
    below 32 MiB, and the peak of a rank then no longer falls with the number of ranks. What the
    environment says (THP_MEM_ALLOC_ENABLE, MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) stays;
    HPCGNN_ALLOCATION=system leaves everything as the system has it.
    """
    if os.environ.get(_SWITCH) == "system":
        return
    os.environ.setdefault(_HUGE, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # no glibc
    for name, number in (
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD),
    ):
        if name not in os.environ:
            mallopt(number, _LARGE)


def without() -> dict[str, str]:
    """The environment for a process that is to take memory as if hpcgnn weren't there."""
    return {name: value for name, value in os.environ.items() if name != _HUGE} | {
        _SWITCH: "system"
    }


def find_program(name: str) -> str | None:
    """Its absolute path, or None. Entries of PATH that are empty or relative don't count."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if os.path.isabs(f)))  # noqa: PTH117
