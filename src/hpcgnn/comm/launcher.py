"""What mpiexec and srun tell a process about its rank, read before MPI is started."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from hpcgnn.errors import InputError

FORGONE = "HPCGNN_MPI"
_LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PALS_RANKID", "PALS_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_FORMS = {  # what MPICH accepts
    **dict.fromkeys(("PMI_RANK", "PMI_ID", "PMI_SIZE"), r"-?[0-9]{1,9}"),
    "PMI_FD": r"[3-9]|[1-9][0-9]{1,6}",
    "PMI_PORT": r".+:[0-9]{1,5}",
}


def launched() -> tuple[int, int]:
    """Return rank and number of processes as mpiexec or srun set them, else (0, 1).

    Variables with invalid values, which other programs may leave, count as unset.
    """
    return place(os.environ) or (0, 1)


def is_forgone() -> bool:
    """Return whether HPCGNN_MPI=none tells this one process to run without MPI.

    Raises:
        InputError: HPCGNN_MPI has another value, or there are several processes.
    """
    said = os.environ.get(FORGONE)
    if said is None:
        return False
    if said != "none":
        raise InputError(f"{FORGONE} must be none or unset", value=said)
    if launched()[1] > 1:
        raise InputError(f"{FORGONE}=none is for one process: unset it", value=launched()[1])
    return True


@contextmanager
def forgone() -> Iterator[None]:
    """Keep MPI from being started within the context, in a job of one process."""
    before = os.environ.get(FORGONE)
    os.environ[FORGONE] = "none"
    try:
        yield
    finally:
        os.environ.pop(FORGONE)
        if before is not None:
            os.environ[FORGONE] = before


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


def forget_nonsense() -> None:
    """Remove environment variables with invalid values that would make the start of MPI fail."""
    for name, form in _FORMS.items():
        if name in os.environ and re.fullmatch(form, os.environ[name]) is None:
            del os.environ[name]
    if "PMI_FD" in os.environ:
        try:
            os.fstat(int(os.environ["PMI_FD"]))
        except OSError:
            del os.environ["PMI_FD"]
    served = any(name.startswith("PMIX_SERVER_URI") for name in os.environ)
    if not served or "PMIX_NAMESPACE" not in os.environ:
        for name in ("PMIX_RANK", "PMIX_NAMESPACE"):
            os.environ.pop(name, None)


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
    with suppress(OSError, ValueError):
        number = int(os.environ.get("PMI_FD", ""))
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return
        with socket.socket(fileno=os.dup(number)) as wire:
            if wire.family == socket.AF_UNIX and not wire.getsockname():
                wire.sendall(f"cmd=abort exitcode={status}\n".encode())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
