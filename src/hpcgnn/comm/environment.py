"""Environment variables that decide how MPI starts, and whether."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hpcgnn.comm.launcher import launched
from hpcgnn.errors import InputError

FORGONE = "HPCGNN_MPI"
_NUMBERS = ("PMI_RANK", "PMI_ID", "PMI_SIZE")
_FORMS = {  # what MPICH accepts
    **dict.fromkeys(_NUMBERS, r"-?[0-9]{1,9}"),
    "PMI_FD": r"[3-9]|[1-9][0-9]{1,6}",
    "PMI_PORT": r".+:[0-9]{1,5}",
}


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


def forget_nonsense() -> None:
    """Remove environment variables with invalid values that would make the start of MPI fail.

    Raises:
        InputError: a launcher is there, so its own value of a variable has been overwritten.
    """
    wrong = [n for n, form in _FORMS.items() if n in os.environ and not _fits(n, form)]
    if _has_wire():
        wrong += [n for n in _NUMBERS if os.environ.get(n, "").startswith("-")]
        if wrong:
            raise InputError(
                f"{wrong[0]} must be as mpiexec or srun sets it: don't change it",
                value=os.environ[wrong[0]],
            )
    for name in wrong:
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


def _fits(name: str, form: str) -> bool:
    return re.fullmatch(form, os.environ[name]) is not None


def _has_wire() -> bool:
    """Return whether PMI_FD is open to a launcher."""
    try:
        mode = os.fstat(int(os.environ.get("PMI_FD", ""))).st_mode
    except (OSError, ValueError, OverflowError):
        return False
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
