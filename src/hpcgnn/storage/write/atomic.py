"""HDF5 files that appear under their name only when complete, and rules of what may be replaced."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import c_int64
from glob import escape
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from hpcgnn.comm.liveness.termination import raise_waiting, uninterruptible
from hpcgnn.errors import HpcgnnError, InputError, OutputError
from hpcgnn.storage.read.reader import format_of
from hpcgnn.storage.schema import MAX_CHUNK_BYTES, WHAT, attribute_checksum, chunk_rows

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

LIBVER = ("v110", "v110")  # metadata with checksums, readable by every HDF5 since 1.10
_STEP = 8 << 20  # bytes after which the system begins to write to the disk
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_NAME = 200  # bytes of the target's name used in a temporary file's; most systems allow 255


class OutputFile:
    """An HDF5 file being written; `h5` is the open h5py file."""

    def __init__(self, h5: h5py.File, path: Path, sink: _Sink | None = None) -> None:
        self.h5 = h5
        self.path = path
        self._sink = sink

    def check(self) -> None:
        """Raise OutputError if any write has failed so far."""
        if self._sink is not None and self._sink.error is not None:
            raise write_error(self.path, self._sink.error)

    def dataset(
        self,
        name: str,
        dtype: np.dtype,
        shape: tuple[int, ...],
        *,
        compress: bool = False,
        growing: bool = False,
    ) -> h5py.Dataset:
        """Create a chunked dataset with checksums; `growing` ones can be resized along the rows."""
        rows = min(chunk_rows(shape[1:], dtype), max(1, shape[0]))
        tail = tuple(max(1, length) for length in shape[1:])
        if prod(tail) * dtype.itemsize > MAX_CHUNK_BYTES:
            raise InputError("has rows above 256 MiB", file=self.path, dataset=name, value=shape)
        resizable = growing or 0 in shape
        return self.h5.create_dataset(
            name,
            shape=shape,
            dtype=dtype,
            maxshape=(None, *(length or None for length in shape[1:])) if resizable else None,
            chunks=(rows, *tail),
            fletcher32=True,
            shuffle=compress,
            compression="gzip" if compress else None,
            compression_opts=3 if compress else None,
        )

    def set_attributes(self, attributes: Mapping[str, int | str | dict]) -> None:
        """Write the root's attributes and their checksum; dictionaries become JSON."""
        plain = {
            name: json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
            for name, value in attributes.items()
        }
        plain["checksum"] = attribute_checksum(plain)
        for name, value in plain.items():
            set_attribute(self.h5, name, value)


def set_attribute(item: h5py.Group, name: str, value: int | str) -> None:
    """Set an attribute that is stored inside the object's header, which HDF5 checksums."""
    if isinstance(value, str):
        encoded = value.encode()
        kind = h5py.string_dtype("utf-8", max(1, len(encoded)))
        item.attrs.create(name, np.array(encoded, dtype=kind))
    else:
        item.attrs.create(name, np.int64(value))


@contextmanager
def create(path: str | Path) -> Iterator[OutputFile]:
    """Yield a new file that gets the name `path` when the block ends without an error.

    Raises:
        OutputError: the file can't be written. The temporary file is removed, and an earlier file
            of that name is intact.
    """
    path = Path(path)
    with claim(path) as temporary:
        with write(temporary, "w", shown=path) as output:
            yield output
        publish(temporary, path)


@contextmanager
def claim(path: Path) -> Iterator[Path]:
    """Yield a new hidden file in the folder of `path`, removed after the block unless published.

    During the block this process holds a lock that shows other processes that the file is in use.

    Raises:
        OutputError: no file can be created there.
    """
    _prepare(path)
    temporary, descriptor = _locked(path, _new_file)
    try:
        yield temporary
    finally:
        discard(temporary)
        os.close(descriptor)


@contextmanager
def claim_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, which is locked and removed as in `claim`."""
    _prepare(path)
    temporary, descriptor = _locked(path, _new_folder)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _prepare(path: Path) -> None:
    try:
        if not path.parent.is_dir():
            raise OutputError("no such folder: create it first", file=path.parent)
        refuse_irregular(path)
    except OSError as error:  # a folder without access, or a name that is too long
        raise write_error(path, error) from None
    remove_abandoned(path.parent, path.name)


def refuse_irregular(path: Path) -> None:
    """Check that `path` is free or names a regular file: no folder, link, device or pipe.

    Raises:
        OutputError: it names something else, or can't be examined.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from None
    if stat.S_ISDIR(mode):
        raise OutputError("is a folder; a file name is needed", file=path)
    if not stat.S_ISREG(mode):
        what = "link: name the file itself" if stat.S_ISLNK(mode) else "device, pipe or socket"
        raise OutputError(f"can't be replaced, since it is a {what}", file=path)


def _new_file(path: Path) -> int:
    # This descriptor only holds the lock: each rank that writes opens the file itself, in turn.
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _locked(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = make(temporary)
        except OSError as error:
            raise write_error(path, error) from None
        # A shared lock, compatible with HDF5's lock in readers that open the file once published.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # removed as abandoned before it was locked


def _shortened(name: str) -> str:
    """Return the first `_NAME` bytes of a name, without a character cut in two."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME:
        return name
    return raw[:_NAME].decode(errors="ignore")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders that no running process has locked.

    With `name`, only those of the file `name`. On a file system without locks, nothing is removed.
    """
    target = "?*" if name is None else escape(_shortened(name))
    for temporary in folder.glob(f".{target}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):
            is_folder = temporary.is_dir() and not temporary.is_symlink()
            kind = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
            descriptor = os.open(temporary, kind | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary) if is_folder else temporary.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def write(temporary: Path, mode: str, *, shown: Path) -> Iterator[OutputFile]:
    """Open a claimed file (mode "w": empty it, "r+": extend it); flush it to the disk at the end.

    Args:
        shown: the file name in error messages.
    """
    try:
        sink = _Sink(temporary)
    except OSError as error:
        raise write_error(shown, error) from None
    try:
        h5 = h5py.File(sink, mode, libver=LIBVER)
        output = OutputFile(h5, shown, sink)
        try:
            yield output
        finally:
            h5.close()
        raise_waiting()
        sink.sync()
        output.check()
    except HpcgnnError:
        raise
    except Exception as error:
        if sink.error is not None:
            raise write_error(shown, sink.error) from None
        if isinstance(error, OSError):
            raise write_error(shown, error) from error
        raise
    finally:
        sink.close()


def publish(temporary: Path, path: Path) -> None:
    """Rename a complete temporary file to its final name, durably."""
    refuse_irregular(path)
    try:
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise write_error(path, error) from None


def discard(temporary: Path) -> None:
    """Remove a temporary file, if it is there."""
    with suppress(OSError):
        temporary.unlink()


def write_error(path: Path, error: OSError) -> OutputError:
    """Return our error for an output that the system could not write."""
    reason = error.strerror or " ".join(str(error).split())[:160]
    return OutputError(f"can't be written: {reason}; nothing was left under this name", file=path)


class _Sink:
    """The file object given to HDF5: writes never fail; `error` keeps the file's first failure.

    The system begins to write to the disk every few megabytes, and `sync` waits for the rest.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        self._position = 0
        self._begun = 0  # bytes from the file's start for which writing to the disk has begun
        self._begin_writing = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux
        self._kept: list[tuple[int, bytes]] = []

    @uninterruptible
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self._size() if base is None else base)
        return self._position

    @uninterruptible
    def tell(self) -> int:
        return self._position

    @uninterruptible
    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, len(view), self._position)
        view[:] = data + bytes(len(view) - len(data))
        for offset, kept in self._kept:
            low = max(offset, self._position)
            high = min(offset + len(kept), self._position + len(view))
            if low < high:
                view[low - self._position : high - self._position] = kept[
                    low - offset : high - offset
                ]
        self._position += len(view)
        return len(view)

    @uninterruptible
    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(memoryview(data))
        return bytes(data)

    @uninterruptible
    def write(self, buffer: bytes | memoryview) -> int:
        view = memoryview(buffer).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += os.pwrite(self._descriptor, view[written:], self._position + written)
        except OSError as error:
            self.error = error
        if self.error is not None:
            self._kept.append((self._position, bytes(view)))
        self._position += len(view)
        if self._position - self._begun >= _STEP and self._begin_writing is not None:
            first, number = c_int64(self._begun), c_int64(self._position - self._begun)
            self._begin_writing(self._descriptor, first, number, _SYNC_FILE_RANGE_WRITE)
            self._begun = self._position
        return len(view)

    @uninterruptible
    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = self.error or error
        return size

    @uninterruptible
    def flush(self) -> None:
        pass

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.error = self.error or error

    def close(self) -> None:
        os.close(self._descriptor)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def check_output(
    path: Path,
    format: str,
    *,
    force: bool,
    inputs: Iterable[str | Path | None] = (),
    read_format: Callable[[Path], str | None] = format_of,
    make_folder: bool = False,
) -> None:
    """Check that `path` can be written, and is free or, with `force`, holds a file to replace.

    A file that is replaced must be of the same format. Hours of work may follow, so a hidden file
    is made in the folder and removed, too.

    Args:
        format: the format of the new file, one of `schema.WHAT`.
        force: replace an existing file.
        inputs: files that the same call reads, which are never replaced; None and absent files are
            ignored.
        read_format: returns the format of an existing file; to be given if it is not HDF5.
        make_folder: a missing folder is no error, since it will be made.

    Raises:
        InputError: `path` is something else, or an existing file and `force` is not set.
        OutputError: no file can be made there.
    """
    mode = stat.S_IFDIR  # of nothing that `claim` doesn't refuse
    with suppress(OSError):
        mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        _check_replaceable(path, mode, format, force, inputs, read_format)
    place = path
    if make_folder and not path.parent.exists():
        place = next(above for above in path.absolute().parents if above.exists()) / path.name
    try:
        with claim(place):
            pass
    except OutputError as error:
        if place == path:
            raise
        raise OutputError("its folder can't be made", file=path) from error


def _check_replaceable(
    path: Path,
    mode: int,
    format: str,
    force: bool,
    inputs: Iterable[str | Path | None],
    read_format: Callable[[Path], str | None],
) -> None:
    if any(_same(path, Path(source)) for source in inputs if source is not None):
        raise InputError("is an input of this command: choose another name", file=path)
    if not stat.S_ISREG(mode):
        raise InputError("is a link, device, pipe or socket: choose another name", file=path)
    if not force:
        raise InputError("exists already: choose another name, or use --force", file=path)
    if read_format(path) != format:
        raise InputError(
            f"exists and is not a {WHAT[format]} of hpcgnn, so --force doesn't replace it: choose "
            "another name, or remove it",
            file=path,
        )


def check_output_together(
    comm: Communicator,
    path: Path,
    format: str,
    *,
    force: bool,
    inputs: Iterable[str | Path | None] = (),
    read_format: Callable[[Path], str | None] = format_of,
    make_folder: bool = False,
) -> None:
    """Do `check_output` on rank 0 for all ranks; collective, and all ranks raise its error."""
    error: HpcgnnError | None = None
    if comm.rank == 0:
        try:
            check_output(
                path,
                format,
                force=force,
                inputs=inputs,
                read_format=read_format,
                make_folder=make_folder,
            )
        except HpcgnnError as caught:
            error = caught
    # Broadcast first, since the error does not concern rank 0 alone.
    comm.agree(comm.broadcast(error, where="check the output"), where="check the output")


def _same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:
        return False
