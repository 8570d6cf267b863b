"""The space in /dev/shm, through which ranks of one node talk: without it MPI ends by a signal."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpcgnn.errors import InputError, warning

FOLDER = Path("/dev/shm")
# Measured with MPICH 5: without the first the start fails, without the second the first messages.
_LEAST = 1.25 * 2**20  # bytes per rank of the node
_ENOUGH = 10 * 2**20
_LOCAL = (
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


@dataclass(frozen=True)
class Space:
    """Bytes of the file system, and how many of them are free."""

    total: int
    free: int

    @classmethod
    def here(cls) -> Space | None:
        """None where there is no such folder."""
        try:
            found = os.statvfs(FOLDER)
        except OSError:
            return None
        return cls(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def problem(self, ranks: int) -> str:
        """What `ranks` ranks on this node lack, or an empty string."""
        if self.total and min(self.total, self.free) < ranks * _ENOUGH:
            return (
                f"{FOLDER} has {self.free / 2**20:.0f} of {self.total / 2**20:.0f} MiB free for "
                f"{ranks} ranks, and MPI ends by a signal where that is not enough: enlarge it to "
                f"{ranks * _ENOUGH / 2**20:.0f} MiB (mount -o remount,size=..., docker "
                "--shm-size) or remove what jobs left there"
            )
        return ""

    def hopeless(self, ranks: int) -> bool:
        return 0 < self.total < ranks * _LEAST


def local_place() -> tuple[int, int]:
    """This rank's number among those of its node, and how many they are; (0, 1) if unknown."""
    for rank, size in _LOCAL:
        number = re.fullmatch(r"[0-9]{1,9}", os.environ.get(rank, ""))
        here = _here(os.environ.get(size, ""))
        if number and here:
            return int(number[0]), here
    return 0, 1


def _here(text: str) -> int:
    """How many ranks this node has; `2(x3),1` is Slurm's way to tell of four. 0: unknown."""
    counts = [
        (int(count), int(times or 1))
        for count, times in re.findall(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?(?:,|$)", text)
    ]
    node = os.environ.get("SLURM_NODEID", "")
    left = int(node) if node.isascii() and node.isdigit() and len(node) < 10 else 0
    for count, times in counts:
        if left < times:
            return count
        left -= times
    return counts[0][0] if counts else 0


def check() -> None:
    """Before MPI starts: warn once per node where the space may not do.

    Raises:
        InputError: on all ranks of a node, where it can't do.
    """
    rank, ranks = local_place()
    space = Space.here()
    problem = space.problem(ranks) if space is not None else ""
    if space is not None and problem and space.hopeless(ranks):
        raise InputError(problem)
    if problem and rank == 0:
        warning(str(problem))
