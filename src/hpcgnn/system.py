"""The environment of the process: memory allocator, installed programs, information from /proc."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import resource
import shutil
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE, _VERY_LARGE = 1 << 20, 4 << 20  # bytes
_SWITCH, _HUGE = "HPCGNN_ALLOCATION", "THP_MEM_ALLOC_ENABLE"
_NUMPY_LACKS = "NPY_DISABLE_CPU_FEATURES"


def set_up() -> None:
    """Enable huge pages for large tensors, and return freed arrays to the system at once.

    Page faults of 4 KiB pages take longer than the kernels that cause them. By default glibc keeps
    arrays below 32 MiB, and then the peak of a rank no longer falls with the number of ranks.
    Settings of the environment (THP_MEM_ALLOC_ENABLE, MALLOC_MMAP_THRESHOLD_,
    MALLOC_TRIM_THRESHOLD_) are kept; HPCGNN_ALLOCATION=system leaves all defaults of the system.
    """
    if os.environ.get(_SWITCH) == "system":
        return
    os.environ.setdefault(_HUGE, "1")
    _return_to_system(_LARGE)


@contextmanager
def reusing_arrays() -> Iterator[None]:
    """Keep freed arrays below 4 MiB for reuse; otherwise those of 1 MiB return to the system.

    For work on many arrays of about 1 MiB, such as HDF5's chunks: each new one would have to be
    cleared by the system first.
    """
    if os.environ.get(_SWITCH) == "system":
        yield
        return
    _return_to_system(_VERY_LARGE)
    try:
        yield
    finally:
        _return_to_system(_LARGE)


def _return_to_system(least: int) -> None:
    """Let glibc return arrays of `least` bytes and more to the system when they are freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # not glibc
    for name, number in (
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD),
    ):
        if name not in os.environ:
            mallopt(number, least)


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage while libraries are loaded: it takes 8 % of PyTorch, and finds little."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def choose_sorts() -> None:
    """Disable NumPy's AVX-512 sorts on AMD's Zen 4; call it before NumPy is loaded.

    They use masked stores, which that processor implements in microcode: five times as slow as the
    AVX2 sorts. NPY_DISABLE_CPU_FEATURES of the environment is kept. The names of features differ
    between releases of NumPy, which warn of names they don't know.
    """
    warnings.filterwarnings("ignore", f".*{_NUMPY_LACKS}", ImportWarning)
    if processor() == ("AuthenticAMD", 25):
        os.environ.setdefault(_NUMPY_LACKS, "X86_V4 AVX512_SKX AVX512_ICL AVX512_SPR")


def processor() -> tuple[str, int]:
    """Return its vendor and family, as x86 names them; `("", 0)` if unknown."""
    first = _read("/proc/cpuinfo").split("\n\n")[0]
    vendor = re.search(r"^vendor_id\s*: (\w+)", first, re.M)
    family = re.search(r"^cpu family\s*: (\d+)", first, re.M)
    return (vendor[1], int(family[1])) if vendor and family else ("", 0)


def processor_name() -> str:
    """Return its name as the system shows it."""
    found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.M)
    return found[1].strip() if found else platform.processor()


def without() -> dict[str, str]:
    """Return the environment for a process that should run as if hpcgnn weren't there."""
    ours = (_HUGE, _NUMPY_LACKS)
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        _SWITCH: "system"
    }


def find_program(name: str) -> str | None:
    """Return its absolute path, or None. Empty and relative entries of PATH are ignored."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if os.path.isabs(f)))  # noqa: PTH117


def asked_threads() -> int | None:
    """Return OMP_NUM_THREADS of the outermost level, as in `4` or `4,2`; None if it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    number = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
    return number or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def now() -> str:
    """Return the date and time in UTC, in ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock() -> str:
    """Return the local time of day, as in `14:03:59`."""
    return datetime.now().astimezone().strftime("%H:%M:%S")


def bytes_read() -> int:
    """Return the bytes that this process has read so far, cached or not; 0 if unknown."""
    found = re.match(r"rchar: (\d+)", _read("/proc/self/io"))
    return int(found[1]) if found else 0


def is_named_pipe(status: os.stat_result) -> bool:
    """Return whether it is a named pipe, which blocks a reader until it is opened for writing.

    Pipes of the shell, `<(command)` and `command |`, have a writer and no name in a folder.
    """
    if not stat.S_ISFIFO(status.st_mode):
        return False
    ends = os.pipe()
    nowhere = os.fstat(ends[0]).st_dev
    for end in ends:
        os.close(end)
    return status.st_dev != nowhere


def loaded_files(part: str = "") -> list[Path]:
    """Return the files that this process has mapped into its memory; empty if unknown.

    `part`: only those with this text in their path.
    """
    # A path may contain spaces; five columns precede it.
    columns = (line.split(maxsplit=5) for line in _read("/proc/self/maps").splitlines())
    names = dict.fromkeys(c[5] for c in columns if len(c) > 5 and c[5][0] == "/" and part in c[5])
    return [Path(name) for name in names]


def resident_memory() -> int:
    """Return the bytes that this process has in memory now; its peak if unknown."""
    found = resident_memory_of("self")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if found is None else found


def resident_memory_of(pid: int | str) -> int | None:
    """Return the bytes that a process has in memory now; None if it has ended, or if unknown."""
    pages = _read(f"/proc/{pid}/statm").split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else None


def most_resident_memory() -> int:
    """Return the peak bytes in memory of this process; 0 if unknown.

    `getrusage` would include those of the process that started it.
    """
    return _of_status("VmHWM")


def resident_files() -> int:
    """Return the bytes of mapped files, mostly libraries, in this process's memory now.

    How much the system maps around the pages used depends on how it cached the file. It reclaims
    these pages when memory is short.
    """
    return _of_status("RssFile")


def _of_status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", _read("/proc/self/status"), re.M)
    return int(found[1]) << 10 if found else 0


def available_memory() -> int:
    """Return the bytes that processes of this machine can still use, within the job's limits.

    A huge number if unknown.
    """
    found = [1 << 62]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)
    for line in _read("/proc/self/cgroup").splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition(":")[2].lstrip("/")
        for folder in (group, *group.parents):
            limit = _read(f"{folder}/memory.max")
            if limit.isdigit():
                files = re.search(r"^inactive_file (\d+)", _read(f"{folder}/memory.stat"), re.M)
                used = int(_read(f"{folder}/memory.current") or 0)
                found.append(int(limit) - used + int(files[1] if files else 0))
    return max(0, min(found))


def namespace(kind: str) -> str:
    """Return a name for this process's `pid` or `net` namespace, unique over all machines."""
    try:
        name = str(Path(f"/proc/self/ns/{kind}").readlink())
    except OSError:
        name = socket.gethostname()
    return _boot() + name


def machine() -> str:
    """Return a name for this machine, the same in all its containers."""
    return _boot() or platform.node()


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessState:
    """The state of a process: its letter in /proc, parent, processor seconds and start time."""

    letter: str
    parent: int
    cpu: float
    birth: str

    @classmethod
    def of(cls, pid: int) -> ProcessState | None:
        """Return the state of a process; None if it doesn't exist, or without /proc."""
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 20:
            return None
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cls(fields[0], int(fields[1]), seconds, fields[19])


def processes() -> dict[int, ProcessState]:
    """Return the states of all processes that this process can see, by process number."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    states = {number: ProcessState.of(number) for number in numbers}
    return {number: state for number, state in states.items() if state is not None}


def environment_of(pid: int) -> dict[str, str] | None:
    """Return the environment a process started with; empty if it has ended, None if unreadable."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except PermissionError:
        return None
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, _, value in pairs}
