"""The space in /dev/shm, through which ranks of a node communicate; MPI crashes if it is short."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpcgnn.errors import InputError, warning

FOLDER = Path("/dev/shm")
# Measured with MPICH 5: the start needs the first, the first messages need the second.
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
    """Total and free bytes of the file system."""

    total: int
    free: int

    @classmethod
    def here(cls) -> Space | None:
        """Return the space of /dev/shm, or None if it doesn't exist."""
        try:
            found = os.statvfs(FOLDER)
        except OSError:
            return None
        return cls(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def problem(self, ranks: int) -> str:
        """Return what `ranks` ranks on this node lack, or an empty string."""
        if self.total and min(self.total, self.free) < ranks * _ENOUGH:
            return (
                f"{FOLDER} has {self.free / 2**20:.0f} of {self.total / 2**20:.0f} MiB free for "
                f"{ranks} ranks, and MPI is killed by a signal if that is not enough: enlarge it "
                f"to {ranks * _ENOUGH / 2**20:.0f} MiB (mount -o remount,size=..., docker "
                "--shm-size) or remove what earlier jobs left there"
            )
        return ""

    def hopeless(self, ranks: int) -> bool:
        return 0 < self.total < ranks * _LEAST


def local_place() -> tuple[int, int]:
    """Return this rank's number within its node and the node's number of ranks, else (0, 1)."""
    for rank, size in _LOCAL:
        number = re.fullmatch(r"[0-9]{1,9}", os.environ.get(rank, ""))
        here = _here(os.environ.get(size, ""))
        if number and here:
            return int(number[0]), here
    return 0, 1


def _here(text: str) -> int:
    """Return the number of ranks on this node, or 0; Slurm writes 2, 2, 2 and 1 as `2(x3),1`."""
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
    """Warn once per node, before MPI starts, if there may be too little space.

    Raises:
        InputError: on all ranks of a node, if there is certainly too little.
    """
    rank, ranks = local_place()
    space = Space.here()
    problem = space.problem(ranks) if space is not None else ""
    if space is not None and problem and space.hopeless(ranks):
        raise InputError(problem)
    if problem and rank == 0:
        warning(str(problem))
