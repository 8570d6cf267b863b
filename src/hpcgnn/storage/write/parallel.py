"""Writing one file from all ranks at once, with an h5py built for parallel HDF5."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import OutputError, human
from hpcgnn.storage.write import atomic

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


_Layout = list[tuple[str, str, tuple[int, ...]]]
_HEADER_BYTES = 1 << 14  # per dataset, a generous estimate
_SLAB_BYTES = 32 << 20


def write_together(
    path: Path,
    temporary: Path,
    comm: Communicator,
    arrays: Mapping[str, np.ndarray],
    attributes: Sequence[tuple[str, str, int | str]],
    compress: bool,
) -> None:
    """Add every rank's `arrays` (by dataset name) to the file; collective.

    Every rank creates every dataset and takes part in each write, because filters (and so the
    checksums) allow collective writes only. A rank with nothing to write selects no rows.

    Args:
        path: the file name in error messages; `temporary` is the file written.
        attributes: (group, name, value) for this rank's groups.

    Raises:
        OutputError: there is not enough space for the file.
    """
    layout: _Layout = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    plans = comm.allgather((layout, list(attributes)), where="partition layout")
    datasets = [dataset for found, _ in plans for dataset in found]
    with agreed(comm, "reserve space for the partition file"):
        _reserve(path, temporary, datasets, comm.rank == 0)
    with _opened(comm, temporary) as (h5, kept):
        output = atomic.OutputFile(h5, path)
        for name, dtype, shape in datasets:
            with _library(comm, f"create {name}"):
                dataset = output.dataset(name, np.dtype(dtype), shape, compress=compress)
            kept[1:] = [dataset]
            if 0 not in shape:
                _write(comm, dataset, name, arrays.get(name))
        with _library(comm, "write attributes", locked=True):
            for group, name, value in (attribute for _, found in plans for attribute in found):
                atomic.set_attribute(h5[group], name, value)


@contextmanager
def _opened(comm: Communicator, temporary: Path) -> Iterator[tuple[h5py.File, list[Any]]]:
    """Open the file on all ranks, and close it together; after an error it stays open.

    Closing is collective: collected as garbage, the file would wait for the other ranks without
    end, and keep this process's threads from running. Yields the file, and a list of what is kept
    in memory after an error.
    """
    kept: list[Any] = []
    try:
        with _library(comm, "open the partition file", locked=True):
            h5 = h5py.File(temporary, "r+", driver="mpio", comm=comm.mpi, libver=atomic.LIBVER)
            kept.append(h5)
        yield h5, kept
        with _library(comm, "close the partition file"):
            h5.close()
    except BaseException as error:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # until the process ends
        comm.unfinished.break_off("write the partition file", error, kept)
        raise


@contextmanager
def _library(comm: Communicator, where: str, *, locked: bool = False) -> Iterator[None]:
    """Surround a collective HDF5 call, which all ranks begin together after a barrier.

    `locked` says that h5py holds Python's global lock during the call.
    """
    comm.barrier(where=where)
    with comm.blocking_call(where, locked=locked):
        yield


def _reserve(path: Path, temporary: Path, datasets: _Layout, first: bool) -> None:
    """Reserve the file's space in advance: parallel HDF5 hangs if a collective write fails."""
    size = temporary.stat().st_size + sum(
        prod(shape) * np.dtype(dtype).itemsize * 102 // 100 + _HEADER_BYTES
        for _, dtype, shape in datasets
    )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        raise OutputError(f"needs about {human(size)}, above the limit on file sizes", file=path)
    if not first:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64
    libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, offset, offset)
    with temporary.open("r+b") as file:
        failed = libc.fallocate64(file.fileno(), 0, 0, size) != 0
    if failed and (code := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise atomic.write_error(path, OSError(code, os.strerror(code)))


def _write(comm: Communicator, dataset: h5py.Dataset, name: str, array: np.ndarray | None) -> None:
    """Write whole chunks at a time; `array` is None on ranks that have nothing to write."""
    chunk_bytes = prod(dataset.chunks) * dataset.dtype.itemsize
    step = dataset.chunks[0] * max(1, _SLAB_BYTES // chunk_bytes)
    for low in range(0, dataset.shape[0], step):
        with _library(comm, f"write {name}"):
            _write_slab(dataset, low, None if array is None else array[low : low + step])


def _write_slab(dataset: h5py.Dataset, low: int, rows: np.ndarray | None) -> None:
    transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    stored = dataset.id.get_space()
    if rows is None:
        rows = np.zeros(1, dataset.dtype)
        memory = h5py.h5s.create_simple(rows.shape)
        memory.select_none()
        stored.select_none()
    else:
        memory = h5py.h5s.create_simple(rows.shape)
        stored.select_hyperslab((low, *(0 for _ in rows.shape[1:])), rows.shape)
    dataset.id.write(memory, stored, np.ascontiguousarray(rows), dxpl=transfer)
