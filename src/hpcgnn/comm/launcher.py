"""What mpiexec and srun tell a process about its rank, read before MPI is started.

`import hpcgnn` loads this module, so it must load little itself.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import NoReturn

_LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PALS_RANKID", "PALS_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched() -> tuple[int, int]:
    """Return rank and number of processes as mpiexec or srun set them, else (0, 1).

    Variables with invalid values, which other programs may leave, count as unset.
    """
    return place(os.environ) or (0, 1)


def has_launcher() -> bool:
    """Return whether mpiexec or srun started this process, even as the only one."""
    return place(os.environ) is not None


def place(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return rank and number of processes from an environment; None if they are not set."""
    for names in _LAUNCHERS:
        rank, size = (_number(environment.get(name, "")) for name in names)
        if rank is not None and size is not None and rank < size:
            return rank, size
    return None


def launcher(size: int) -> str:
    """Return the launcher prefix of a command for `size` ranks, like the one of this job."""
    if size == 1:
        return ""
    return f"srun -n {size} " if "SLURM_JOB_ID" in os.environ else f"mpiexec -n {size} "


def one_ends_all() -> bool:
    """Return whether the launcher ends all processes if one fails that has no MPI yet.

    Hydra (MPICH) does if `end_job` requests it, Open MPI always, srun only with its own option.
    """
    return is_hydra() or "OMPI_COMM_WORLD_RANK" in os.environ


def is_hydra() -> bool:
    """Return whether MPICH's mpiexec, or one that is made from it, started this process."""
    return "HYDI_CONTROL_FD" in os.environ


def end_job(status: int) -> None:
    """Make Hydra end all processes with `status`; does nothing under other launchers."""
    if not is_hydra():
        return
    try:
        number = int(os.environ.get("PMI_FD", ""))
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            _abort(number, f"cmd=abort exitcode={status}\n")
    except (OSError, ValueError):
        return


def end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    """End all ranks with the usual status: Hydra would return the bare number of the signal.

    A handler for the time before and after `terminable`.
    """
    end_job(128 + number)
    os._exit(128 + number)


def _abort(number: int, order: str) -> None:
    import socket

    with socket.socket(fileno=os.dup(number)) as wire:
        if wire.family == socket.AF_UNIX and not wire.getsockname():
            wire.sendall(order.encode())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
