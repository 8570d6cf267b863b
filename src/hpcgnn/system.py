"""The process's surroundings: memory allocator, programs of the machine, what /proc tells."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import socket
import stat
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 1 << 20  # bytes
_SWITCH, _HUGE = "HPCGNN_ALLOCATION", "THP_MEM_ALLOC_ENABLE"
_NUMPY_LACKS = "NPY_DISABLE_CPU_FEATURES"


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


def choose_sorts() -> None:
    """Leaves NumPy's AVX-512 sorts out on AMD's Zen 4; to be called before NumPy is loaded.

    They store through masks, which that processor does in microcode: five times as slow as the
    AVX2 ones. A NPY_DISABLE_CPU_FEATURES in the environment stays. Releases of NumPy know
    other features, and warn of those that they lack.
    """
    warnings.filterwarnings("ignore", f".*{_NUMPY_LACKS}", ImportWarning)
    if processor() == ("AuthenticAMD", 25):
        os.environ.setdefault(_NUMPY_LACKS, "X86_V4 AVX512_SKX AVX512_ICL AVX512_SPR")


def processor() -> tuple[str, int]:
    """Its vendor and family, as x86 names them; `("", 0)` where the system doesn't tell."""
    first = _read("/proc/cpuinfo").split("\n\n")[0]
    vendor = re.search(r"^vendor_id\s*: (\w+)", first, re.M)
    family = re.search(r"^cpu family\s*: (\d+)", first, re.M)
    return (vendor[1], int(family[1])) if vendor and family else ("", 0)


def processor_name() -> str:
    """As the system shows it."""
    found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.M)
    return found[1].strip() if found else platform.processor()


def without() -> dict[str, str]:
    """The environment for a process that is to run as if hpcgnn weren't there."""
    ours = (_HUGE, _NUMPY_LACKS)
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        _SWITCH: "system"
    }


def find_program(name: str) -> str | None:
    """Its absolute path, or None. Entries of PATH that are empty or relative don't count."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if os.path.isabs(f)))  # noqa: PTH117


def asked_threads() -> int | None:
    """What OMP_NUM_THREADS says of the outermost level, as in `4` or `4,2`; None: nothing."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    number = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
    return number or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def now() -> str:
    """The date and time in UTC, as ISO 8601 has them."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock() -> str:
    """The time of day of this machine: `14:03:59`."""
    return datetime.now().astimezone().strftime("%H:%M:%S")


def bytes_read() -> int:
    """What this process has read so far, cached or not; 0 where the system doesn't tell."""
    found = re.match(r"rchar: (\d+)", _read("/proc/self/io"))
    return int(found[1]) if found else 0


def is_named_pipe(status: os.stat_result) -> bool:
    """Whether it is a pipe in a folder, which holds a reader until somebody opens it to write.

    Those of the shell, `<(command)` and `command |`, have a writer and lie in no folder.
    """
    if not stat.S_ISFIFO(status.st_mode):
        return False
    ends = os.pipe()
    nowhere = os.fstat(ends[0]).st_dev
    for end in ends:
        os.close(end)
    return status.st_dev != nowhere


def loaded_files() -> list[Path]:
    """Files that this process has mapped into its memory; none where the system doesn't tell."""
    # A path may hold spaces; five columns stand before it.
    columns = (line.split(maxsplit=5) for line in _read("/proc/self/maps").splitlines())
    return list(dict.fromkeys(Path(c[5]) for c in columns if len(c) > 5 and c[5][0] == "/"))


def resident_memory() -> int:
    """Bytes this process has in memory now; its peak where the system doesn't tell."""
    found = resident_memory_of("self")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if found is None else found


def resident_memory_of(pid: int | str) -> int | None:
    """Bytes a process has in memory now; None where it is gone, or the system doesn't tell."""
    pages = _read(f"/proc/{pid}/statm").split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else None


def most_resident_memory() -> int:
    """Bytes this process had in memory at most; 0 where the system doesn't tell.

    `getrusage` counts those of the process that it was started by, too.
    """
    return _of_status("VmHWM")


def resident_files() -> int:
    """Bytes of files, libraries most of all, that lie in the memory of this process now.

    How much the system maps around what is touched depends on how it cached the file. It is taken
    back where memory is short.
    """
    return _of_status("RssFile")


def _of_status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", _read("/proc/self/status"), re.M)
    return int(found[1]) << 10 if found else 0


def available_memory() -> int:
    """Bytes that processes of this machine can still take, within the job's limits too.

    A huge number where the system doesn't tell.
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
    """A name for the `pid` or `net` namespace of this process that no other machine has."""
    try:
        name = str(Path(f"/proc/self/ns/{kind}").readlink())
    except OSError:
        name = socket.gethostname()
    return _boot() + name


def machine() -> str:
    """A name for this machine, the same in all its containers."""
    return _boot() or platform.node()


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessState:
    """What the system says of a process: a letter, its processor seconds, when it was born."""

    letter: str
    parent: int
    cpu: float
    birth: str

    @classmethod
    def of(cls, pid: int) -> ProcessState | None:
        """None when there is no such process, or no /proc."""
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 20:
            return None
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cls(fields[0], int(fields[1]), seconds, fields[19])


def processes() -> dict[int, ProcessState]:
    """All that this process sees, by number."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    states = {number: ProcessState.of(number) for number in numbers}
    return {number: state for number, state in states.items() if state is not None}
