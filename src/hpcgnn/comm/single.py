"""A substitute for mpi4py's MPI in one process that has no MPI library.

It has the names of mpi4py that this package uses. A group of one rank sends no messages: every
collective is a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

BYTE = "byte"
UNDEFINED = -32766
THREAD_SERIALIZED, THREAD_MULTIPLE = 2, 3
ERRORS_RETURN = None
NO_LIBRARY = "no MPI library"


class Exception(RuntimeError):
    """Never raised: there is no library that could fail."""


class Status:
    """The status of a message; a single rank receives none."""

    def Get_count(self) -> int:
        return 0


class Request:
    """The request of an operation that was complete when it began; null once it was tested."""

    def __init__(self) -> None:
        self.null = False

    def Test(self, status: Status | None = None) -> bool:
        self.null = True
        return True

    @staticmethod
    def Testany(requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        for index, request in enumerate(requests):
            if not request.null:
                return index, request.Test(status)
        return UNDEFINED, True


class Comm:
    """A group of one rank."""

    _keys: int = 0

    def __init__(self) -> None:
        self._attributes: dict[int, Any] = {}

    @classmethod
    def Create_keyval(cls) -> int:
        Comm._keys += 1
        return Comm._keys

    def Get_attr(self, key: int) -> Any:
        return self._attributes.get(key)

    def Set_attr(self, key: int, value: Any) -> None:
        self._attributes[key] = value

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Idup(self) -> tuple[Comm, Request]:
        return Comm(), Request()

    def Split(self, color: int = 0, key: int = 0) -> Comm:
        return COMM_NULL if color == UNDEFINED else Comm()

    def Free(self) -> None:
        self._attributes.clear()

    def Ibarrier(self) -> Request:
        return Request()

    def Ibcast(self, buffer: Any, root: int = 0) -> Request:
        return Request()

    def Iallgather(self, own: Any, all_P: Any) -> Request:
        return _copied(own, all_P)

    def Iallgatherv(self, own: Any, all_P: Any) -> Request:
        return _copied(own, all_P)

    def Ialltoall(self, own_P: Any, other_P: Any) -> Request:
        return _copied(own_P, other_P)

    def Abort(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(status)


def _copied(source: Any, target: Any) -> Request:
    """Copy `source` to `target`, each an array or a list that begins with one."""
    a, b = (np.asarray(x[0] if isinstance(x, list) else x) for x in (source, target))
    b.reshape(-1).view(np.uint8)[: a.nbytes] = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
    return Request()


COMM_NULL = Comm()
COMM_WORLD, COMM_SELF = Comm(), Comm()


def Is_initialized() -> bool:
    return True


def Is_finalized() -> bool:
    return False


def Query_thread() -> int:
    return THREAD_MULTIPLE


def Get_library_version() -> str:
    return NO_LIBRARY
