"""Shared libraries on disk: their dependencies, trusted places, and the MPI they expect."""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.system import loaded_files

_MPI_NAME = re.compile(r"lib(mpi|mpich|mpi_abi|mpi_(cray|gnu|intel|amd|aocc|nvidia|pgi)\w*)\.so")
_FOLDERS = ("PARMETIS_DIR", "PARMETIS_ROOT", "PARMETIS_HOME", "EBROOTPARMETIS")
_CRAY_FOLDERS = ("CRAY_PARMETIS_PREFIX_DIR", "CRAY_TPSL_PREFIX_DIR", "CRAY_TPSL_64_PREFIX_DIR")
_PATHS = ("LD_LIBRARY_PATH", "CRAY_LD_LIBRARY_PATH", "LIBRARY_PATH")
_SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
_DYNAMIC, _LOAD = 2, 1
_NEEDED, _STRINGS, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29


@dataclass(frozen=True)
class Dynamic:
    """The dynamic section of a shared library."""

    path: Path
    soname: str
    needed: tuple[str, ...]
    folders: tuple[Path, ...]  # where it looks for its dependencies

    @classmethod
    def read(cls, path: Path) -> Dynamic:
        """Read `path`; raise InputError unless it is a 64-bit little-endian shared library."""
        try:
            if not path.is_file():
                raise InputError("is not a shared library for this machine", file=path)
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path) from error
        try:
            entries, strings = _dynamic_section(data)
        except (struct.error, ValueError, IndexError) as error:
            raise InputError("is not a shared library for this machine", file=path) from error

        def names(tag: int) -> list[str]:
            offsets = [strings + value for key, value in entries if key == tag]
            return [data[o : data.index(b"\0", o)].decode() for o in offsets]

        origin = path.resolve().parent
        search = ":".join(names(_RPATH) + names(_RUNPATH)).split(":")
        expanded = (re.sub(r"\$(ORIGIN|\{ORIGIN\})", str(origin), folder) for folder in search)
        return cls(
            path=path,
            soname=(names(_SONAME) or [path.name])[0],
            needed=tuple(names(_NEEDED)),
            folders=(origin, *absolute(":".join(expanded))),
        )


def _dynamic_section(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return the section's (tag, value) entries and the file offset of its strings."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not ELF64")
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, headers + k * size) for k in range(count)]
    start, length = next((s[2], s[5]) for s in segments if s[0] == _DYNAMIC)
    entries = list(struct.iter_unpack("<QQ", data[start : start + length]))
    address = next(value for tag, value in entries if tag == _STRINGS)
    for kind, _, offset, virtual, _, in_file in segments:
        if kind == _LOAD and virtual <= address < virtual + in_file:
            return entries, address - virtual + offset
    raise ValueError("no string table")


def dependencies(path: Path) -> list[Dynamic]:
    """Return `path` and the libraries found beside it or on its search path, deepest last."""
    found = [Dynamic.read(path)]
    seen = {found[0].soname}
    for library in found:
        for name in library.needed:
            if name in seen:
                continue
            seen.add(name)
            place = next((f / name for f in library.folders if (f / name).is_file()), None)
            if place is not None and not _MPI_NAME.match(name):
                found.append(Dynamic.read(place))
    return found


def needed_mpi(libraries: list[Dynamic]) -> list[str]:
    """Return the names of the MPI libraries that these are linked to."""
    return sorted({n for library in libraries for n in library.needed if _MPI_NAME.match(n)})


def loaded_mpi() -> dict[str, Path]:
    """Return the MPI libraries in this process, each by its file's name and by its soname."""
    result = {}
    for file in sorted(loaded_files()):
        if _MPI_NAME.match(file.name) and file.is_file():
            result[file.name] = result[Dynamic.read(file).soname] = file
    return result


def mpi_family(name: str) -> str:
    """Return the MPI implementation that a library name like `libmpi.so.40` belongs to."""
    if name.startswith("libmpi_abi"):
        return "the MPI standard ABI"
    if name.startswith("libmpi_"):
        return "Cray MPICH"
    version = re.search(r"\.so\.(\d+)", name)
    if name.startswith("libmpich") or (version and version[1] == "12"):
        return "MPICH"
    return "Open MPI" if version and int(version[1]) >= 20 else "an MPI"


def absolute(paths: str) -> list[Path]:
    """Return absolute folders of a list like PATH; others, and "", depend on the current one."""
    return [Path(path) for path in paths.split(":") if path.startswith("/")]


def check_place(path: Path, *, group: bool = False) -> None:
    """Refuse a library that other users could have put there, before its code runs.

    Args:
        group: whether members of its group may write to it, as in the folders of a project;
            otherwise only if the group is its owner's own.

    Raises:
        InputError: the path isn't absolute, or it or a folder above can be written by others.
    """
    if not path.is_absolute():
        raise InputError("must be an absolute path: its code is run", file=path)
    # For a link, both its own folders and those of its target count.
    for start in dict.fromkeys((path, path.resolve())):
        child: os.stat_result | None = None
        for place in (start, *start.parents):
            try:
                status = place.stat()
            except OSError as error:
                raise InputError(f"can't be read: {error.strerror}", file=place) from None
            if _others_can_write(status, child, group):
                raise InputError(
                    f"isn't loaded, since other users can write to {place}: `chmod o-w` it, or "
                    "move the library; if you trust its group, name it with HPCGNN_PARMETIS",
                    file=path,
                )
            child = status


def _others_can_write(status: os.stat_result, child: os.stat_result | None, group: bool) -> bool:
    """Return whether others can replace the child (None: the file itself) in this folder."""
    mode = status.st_mode
    if not mode & (stat.S_IWOTH | stat.S_IWGRP):
        return False
    if mode & stat.S_ISVTX and child is not None and stat.S_ISDIR(child.st_mode):
        return child.st_uid not in (0, os.geteuid())  # as in /tmp: only its owner can replace it
    if mode & stat.S_IWOTH:
        return True
    return not group and not _is_private(status)


def _is_private(status: os.stat_result) -> bool:
    """Return whether the group is root's, or the owner's own, which usually has the same name."""
    if status.st_gid == 0:
        return True
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
        return grp.getgrgid(status.st_gid).gr_name == owner
    except KeyError:
        return False


def environment_candidates(*, narrow: bool = False) -> Iterator[Path]:
    """Yield builds in the package mgmetis of this Python environment, not of the current folder.

    The 64-bit build comes first, or with `narrow` the 32-bit one.
    """
    patterns = ("parmetis64*.so", "parmetis.*.so")
    package = importlib.util.find_spec("mgmetis")
    here = Path()
    with suppress(OSError):  # it may have been removed
        here = Path.cwd()
    for home in map(Path, package.submodule_search_locations or () if package else ()):
        if home.is_absolute() and home.parent != here:
            for pattern in patterns[::-1] if narrow else patterns:
                yield from sorted((home / "_cython").glob(pattern))


def parmetis_candidates(*, narrow: bool = False) -> Iterator[Path]:
    """Yield libraries that may be ParMETIS, the most specific place first.

    Places named by environment variables count only if they are absolute.
    """
    yield from environment_candidates(narrow=narrow)
    environment = os.environ
    folders = [
        Path(environment[name])
        for name in _FOLDERS + _CRAY_FOLDERS
        if environment.get(name, "").startswith("/")
    ]
    for name in _PATHS:
        folders += absolute(environment.get(name, ""))
    system = [Path("/usr/local/lib"), *(Path(folder) for folder in _SYSTEM)]
    folders += [folder / kind for folder in system for kind in ("parmetis-int64", "parmetis-int32")]
    for place in [*folders, *system]:
        for inside in (place, place / "lib", place / "lib64"):
            yield from sorted(inside.glob("libparmetis*.so*"))
    try:
        cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    except OSError:
        return
    yield from map(Path, re.findall(r"=> (\S*/libparmetis\S*)", cache))
