"""Recovery from errors during communication, and checks that the ranks are still in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from hpcgnn.comm.handles import UnderWay
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.errors import CommunicationError, HpcgnnError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Abandonable(Protocol):
    """An exchange that can complete its messages after its caller has left it.

    `place` is the same on all ranks that are in the same exchange.
    """

    where: str
    place: int

    def abandon(self) -> None:
        """Complete the messages, collectively with the peers' exchange; raise if it can't."""


@dataclass
class _Verdict:
    """A background check of which ranks gave up an exchange, and that it was the same one.

    `all_P4`: for each rank (gave up, not gave up, place, -place); `own_4` is being sent until
    `request` is complete.
    """

    where: str
    request: MPI.Request
    own_4: np.ndarray
    all_P4: np.ndarray


class Unfinished:
    """The state that keeps messages of an abandoned operation from being mixed up with later ones.

    An exchange that its caller left by an exception is completed before the next operation. By the
    end of that operation every rank learns which ranks gave the exchange up: all (they are in step
    again and continue) or some (then all raise). An operation that was left during a wait can't be
    repaired: everything after it is refused.

    Args:
        mpi: a communicator used for nothing else: ranks out of step mix up no messages there.
        tell: tells the other ranks why this one refuses to continue.
        under_way: kept up to date for whoever frees the communicators.
    """

    def __init__(
        self,
        mpi: MPI.Comm,
        wait: Callable[[MPI.Request, str], None],
        tell: Callable[[str], None],
        under_way: UnderWay,
    ) -> None:
        self._mpi, self._wait, self._tell = mpi, wait, tell
        self._under_way = under_way
        self._open: Abandonable | None = None
        self._verdict: _Verdict | None = None
        self._refusal: CommunicationError | None = None
        self._left: list[Any] = []  # buffers that MPI may still write to
        self._begun = 0  # operations so far
        self._strayed = False
        self.amid = False  # this rank has begun an operation whose completion others wait for

    def settle(self) -> None:
        """Complete an abandoned exchange; raise unless all are in step. Precedes a collective."""
        self._begun += 1
        try:
            self._end_open()
            self._judge()
        finally:
            self.amid = False

    def begin(self, exchange: Abandonable) -> None:
        """Register an exchange that starts, after completing an abandoned one."""
        self._begun += 1
        self._end_open()
        self._open = exchange
        self._under_way.messages = True

    def end(self) -> None:
        """Register that all messages of the exchange were sent and received."""
        self._close(gave_up=False)

    def break_off(self, where: str, error: BaseException, keep: object) -> None:
        """Refuse all later operations, after a wait ended by `error`; `keep` stays in memory."""
        self._left.append(keep)
        self._under_way.messages = True
        if self._refusal is not None:
            return
        if isinstance(error, CommunicationError):
            self._refusal = error
        else:
            self._refusal = CommunicationError(
                f"{where!r} was interrupted by {type(error).__name__} while messages were under "
                "way, so the ranks are out of step: end the job"
            )
        if isinstance(error, Exception):  # other ranks receive a signal themselves
            self._tell(str(self._refusal))

    def refuse(self, error: CommunicationError) -> None:
        """Refuse all later operations, as another rank does."""
        self._refusal = self._refusal or error
        self._under_way.messages = True

    def close(self) -> None:
        """Free the communicator, and refuse all later operations. Collective."""
        self._mpi.Free()
        self._refusal = CommunicationError("this communicator was closed: make another one")

    @contextmanager
    def waiting(self, where: str, keep: object) -> Iterator[None]:
        """Guard a wait: requests in `keep` stay in memory if an error ends it."""
        self.amid = True
        try:
            yield
        except BaseException as error:
            self.break_off(where, error, keep)
            raise

    @contextmanager
    def within(self, where: str) -> Iterator[None]:
        """Guard several operations on which other ranks rely: none may be left between two of them.

        After an error that no other rank has seen, all later operations are refused. Errors in the
        arguments are found before the first operation, on all ranks alike.
        """
        begun = self._begun
        try:
            yield
        except BaseException as error:
            seen = isinstance(error, CommunicationError)
            if isinstance(error, HpcgnnError):
                seen = seen or error.agreed is not None or self._begun == begun
            if self._mpi.Get_size() > 1 and not seen:
                self.break_off(where, error, None)
            raise

    def _end_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        left = self._open
        if left is None:
            return
        try:
            left.abandon()
        except BaseException as error:
            self.break_off(left.where, error, left)
            raise
        self._close(gave_up=True)

    def _close(self, gave_up: bool) -> None:
        exchange, self._open = self._open, None
        self._under_way.messages = self._refusal is not None or self._strayed
        size = self._mpi.Get_size()
        if size == 1 or exchange is None:
            return
        problem = self._problem()
        self._note(problem)
        failed = gave_up or bool(problem)
        own_4 = np.array([failed, not failed, exchange.place, -exchange.place], np.int64)
        all_P4 = np.zeros((size, 4), np.int64)
        # Not Iallreduce: Open MPI 4.1 was seen to return numbers other than those sent.
        request = self._mpi.Iallgather(own_4.view(np.uint8), all_P4.view(np.uint8))
        self._verdict = _Verdict(exchange.where, request, own_4, all_P4)
        if problem:
            raise CommunicationError(problem)

    def _judge(self) -> None:
        problem = self._problem()
        self._note(problem)
        if problem:
            raise CommunicationError(problem)

    def _note(self, problem: str) -> None:
        """Remember that ranks out of step may have sent messages that nobody received."""
        self._strayed = self._strayed or bool(problem)
        self._under_way.messages = self._under_way.messages or self._strayed

    def _problem(self) -> str:
        """Wait for the last exchange's verdict; return why the ranks can't continue, or ""."""
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            return ""
        self._wait(verdict.request, verdict.where)
        some_failed, some_ended, place, negative = verdict.all_P4.max(axis=0).tolist()
        if some_failed and some_ended:
            return (
                f"some ranks abandoned {verdict.where!r} after an error and the others continued, "
                "so their results are inconsistent"
            )
        if place != -negative:
            return f"the ranks are out of step: not all reached {verdict.where!r}"
        return ""


def whole(operation: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a method of several steps, which must not be left between two of them."""

    @wraps(operation)
    def run(*args: _P.args, **options: _P.kwargs) -> _R:
        unfinished: Unfinished = args[0].unfinished  # type: ignore[attr-defined]
        try:
            return operation(*args, **options)
        except BaseException as error:
            if unfinished.amid:
                unfinished.break_off(operation.__name__, error, None)
            raise
        finally:
            unfinished.amid = False

    return run


def in_step(operation: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a method whose first argument is a graph: its steps form one operation."""

    @wraps(operation)
    def run(*args: _P.args, **options: _P.kwargs) -> _R:
        graph: Any = args[1] if len(args) > 1 else options["graph"]
        with graph.comm.unfinished.within(operation.__qualname__):
            return operation(*args, **options)

    return run
