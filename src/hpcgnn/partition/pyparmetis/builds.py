"""Builds of ParMETIS: the one to use, checked, loaded, and the widths of its numbers.

A build is checked against the MPI of this process before any of its functions is called, and tested
for the widths of its integers and reals, which none of its symbols tells.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.single import NO_LIBRARY
from hpcgnn.errors import InputError
from hpcgnn.native import address
from hpcgnn.partition.pyparmetis import shared_library
from hpcgnn.partition.pyparmetis.binding import INSTALL, OK, OTHERWISE, ParMETIS, call_library
from hpcgnn.partition.routing import Array


def load(comm: Communicator | MPI.Comm, *, narrow: bool = False) -> ParMETIS:
    """Find, check and load a build, the same file on all ranks. Collective.

    Args:
        comm: a `Communicator`, or an mpi4py communicator.
        narrow: take the build with 32-bit integers if one lies beside that with 64: half the
            memory, for graphs whose counts and weights all add up below 2^31.

        Raises:
            InputError: no build is found, or none that this process can use, with the reason.
    """
    comm = comm if isinstance(comm, Communicator) else Communicator.of(comm)
    path: Path | None = None
    with agreed(comm, "find ParMETIS"):
        if comm.rank == 0:
            path = find(narrow=narrow)
    path = comm.broadcast(path, where="find ParMETIS")
    with agreed(comm, "load ParMETIS"):
        return open_library(path)


def find(*, narrow: bool = False) -> Path:
    """Return the build to use: HPCGNN_PARMETIS, or the first usable one in the usual places.

    With `narrow`, a 32-bit build is preferred if a place has both.
    """
    if MPI.Get_library_version() == NO_LIBRARY:
        raise InputError(f"ParMETIS needs MPI: pip install mpich, {OTHERWISE}")
    chosen = os.environ.get("HPCGNN_PARMETIS")
    if chosen:
        given = Path(chosen)
        if not given.is_absolute():
            raise InputError("HPCGNN_PARMETIS must be an absolute path", file=given)
        inside = sorted([*given.glob("libparmetis*.so*"), *given.glob("lib/libparmetis*.so*")])
        if not given.is_file() and not inside:
            raise InputError(
                f"no such library: HPCGNN_PARMETIS must name ParMETIS's .so, {OTHERWISE}",
                file=given,
            )
        given = given if given.is_file() else inside[0]
        shared_library.check_place(given, group=True)
        check_mpi(given)
        return given
    reason: InputError | None = None
    own = set(shared_library.environment_candidates())
    for path in shared_library.parmetis_candidates(narrow=narrow):
        try:
            # Users who can write to the environment can change everything else that runs, too.
            shared_library.check_place(path, group=path in own)
            check_mpi(path)
            return path
        except InputError as error:
            reason = reason or error
    if reason is not None:
        raise reason
    raise InputError(f"ParMETIS was not found: {INSTALL}, {OTHERWISE}")


def check_mpi(path: Path) -> None:
    """Check that a library is built for the MPI of this process, without calling it.

    Raises:
        InputError: it is built for another MPI; the message names both.
    """
    needed = shared_library.needed_mpi(shared_library.dependencies(path))
    loaded = shared_library.loaded_mpi()
    others = [name for name in needed if name not in loaded]
    if others and loaded:
        vendor = MPI.Get_library_version().split("\n")[0].split(",")[0].replace("\t", " ")
        running = next(iter(loaded.values()))
        raise InputError(
            f"this ParMETIS is built for {shared_library.mpi_family(others[0])} ({others[0]}), "
            f"but this process runs {' '.join(vendor.split())} ({running}): {INSTALL} built with "
            f"this MPI, {OTHERWISE}",
            file=path,
        )


def open_library(path: Path) -> ParMETIS:
    """Load a checked library and find the widths of its numbers."""
    real_path = path.resolve()
    check_mpi(real_path)
    libraries = shared_library.dependencies(real_path)
    if not shared_library.needed_mpi(libraries):
        for mpi in set(shared_library.loaded_mpi().values()):  # its MPI is the process's
            ctypes.CDLL(str(mpi), mode=ctypes.RTLD_GLOBAL)
    try:
        # PT-Scotch's builds of different widths share names of libraries: take those beside it.
        for library in reversed(libraries[1:]):
            shared_library.check_place(library.path, group=True)
            ctypes.CDLL(str(library.path), mode=ctypes.RTLD_LOCAL)
        handle = ctypes.CDLL(str(real_path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise InputError(f"cannot be loaded: {error}", file=path) from error
    if not hasattr(handle, "ParMETIS_V3_PartKway"):
        raise InputError("has no ParMETIS_V3_PartKway: it is not ParMETIS", file=path)
    hint = _index_hint(handle)
    with _silent():
        for index in (hint, 12 - hint):
            for real in (4, 8):
                if _widths_fit(handle, index, real):
                    return ParMETIS(real_path, handle, index, real)
    raise InputError(
        "could partition a graph of four nodes neither with 32- nor with 64-bit indices: "
        f"{INSTALL}, {OTHERWISE}",
        file=path,
    )


def _index_hint(handle: ctypes.CDLL) -> int:
    if hasattr(handle, "SCOTCH_numSizeof"):
        return int(handle.SCOTCH_numSizeof())
    if hasattr(handle, "METIS_SetDefaultOptions"):
        options = np.full(480, 0xA5, np.uint8)
        handle.METIS_SetDefaultOptions(address(options))
        return 4 if (options[160:320] == 0xA5).all() else 8
    return 8


def _widths_fit(handle: ctypes.CDLL, index: int, real: int) -> bool:
    """Return whether these widths fit, by the bytes written in a cut of a cycle of four nodes.

    The cut is into one part. Buffers are padded with zeros, so that a library of another width
    stays within them and finds no rows or a share of zero, which it refuses.
    """

    def padded(values: list[float], kind: str) -> Array:
        buffer = np.zeros(256, np.uint8)
        raw = np.array(values, kind).view(np.uint8)
        buffer[: len(raw)] = raw
        return buffer

    integer, floating = f"i{index}", f"f{real}"
    cut, part = np.full((2, 256), 0xA5, np.uint8)
    arguments = [
        padded([0, 4], integer),
        padded([0, 2, 4, 6, 8], integer),
        padded([1, 3, 0, 2, 1, 3, 0, 2], integer),
        None,
        None,
        *(padded([value], integer) for value in (0, 0, 1, 1)),
        padded([1.0], floating),
        padded([1.05], floating),
        padded([0, 0, 0], integer),
        cut,
        part,
    ]
    status = call_library(handle.ParMETIS_V3_PartKway, MPI.COMM_SELF, arguments)
    written = [int((buffer != 0xA5).sum()) for buffer in (cut, part)]
    return status == OK and written == [index, 4 * index] and not part[: 4 * index].any()


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the output of C code on standard output."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    saved = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
