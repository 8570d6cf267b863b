"""What an exception means for the job: the message, the rank that prints it, the exit status."""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from hpcgnn.comm.environment import FORGONE
from hpcgnn.comm.liveness.location import Location, Report
from hpcgnn.comm.liveness.termination import ENDING, Terminated
from hpcgnn.errors import (
    Agreed,
    HpcgnnError,
    InputError,
    OutOfMemoryError,
    OutputError,
    human,
    is_out_of_memory,
    printable,
    warn,
)
from hpcgnn.system import loaded_files

_ASK_SECONDS = 0.3
_SETTLE_SECONDS = 0.2
_MEET_SECONDS = 2.0
_FORWARD_SECONDS = 0.3  # an abort can overtake the line on its way through a busy launcher
_SILENT_SECONDS = 10.0
_LEAVE_SECONDS = 0.5
_END_SECONDS = 0.5
_CONSEQUENCES = ("LostRank ", "CommunicationError ")
_LAST_WORDS = b"hpcgnn: error: out of memory while ending the job after an error\n"
_SEGMENTS = ("mpich_shm_", "ucx_shm_", "vader_segment", "sm_segment")


class Ranks(Protocol):
    """What the end of a job needs of a communicator."""

    rank: int
    size: int
    location: Location

    def ask(self, seconds: float) -> dict[int, Report]:
        """Return the locations of the other ranks that answer within `seconds`."""

    def stop_others(self, seconds: float) -> None:
        """Make all other ranks leave their with-blocks, and wait until they have."""

    def end_others(self, status: int, seconds: float) -> bool:
        """Make the processes of all other ranks exit; return whether none answers after that."""


@dataclass(frozen=True)
class Failure:
    """The end of a run: `line` is the message ("" for a quiet end), `trace` the lines before it."""

    status: int
    line: str
    trace: tuple[str, ...] = ()
    kind: type[BaseException] = HpcgnnError

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Classify anything that can end a run."""
        kind = type(error)
        ours = translated(error)
        if ours is not None:
            return cls(ours.exit_status, str(ours), tuple(getattr(error, "trace", ())), kind)
        if isinstance(error, KeyboardInterrupt):
            return cls(128 + signal.SIGINT, "", (), kind)
        if isinstance(error, Terminated):
            return cls(128 + error.number, str(error), (), kind)
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return cls(128 + signal.SIGPIPE, "", (), kind)
        if isinstance(error, SystemExit):
            code = error.code
            return cls(code, "") if isinstance(code, int) else cls(1, str(code))
        text = printable(" ".join(str(error).split()))
        trace = "".join(traceback.format_exception(error)).rstrip().split("\n")
        return cls(1, f"unexpected {kind.__name__}: {text}"[:500], tuple(trace), kind)

    def print(self, prefix: str = "") -> None:
        """Write trace and line to stderr in one piece; `prefix` names the rank."""
        lines = [f"[{prefix}] {line}" if prefix else line for line in self.trace]
        if self.line:
            lines.append(f"hpcgnn: error: {prefix + ': ' if prefix else ''}{self.line}")
        if lines:
            warn(*lines)


def flush_output() -> None:
    """Write what stdout holds, ignoring errors: another error is being reported."""
    with suppress(Exception):
        sys.stdout.flush()


def translated(error: BaseException) -> HpcgnnError | None:
    """Return the error as one of ours, with the same meaning in one line; None if unexpected."""
    if isinstance(error, HpcgnnError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(_out_of_memory_line(error))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return InputError(error.strerror, file=os.fsdecode(error.filename))
    if isinstance(error, OSError) and (text := _lacks_space(error)):
        return OutputError(f"{text}: free some space, or let TMPDIR name a folder with more")
    if isinstance(error, OSError | ImportError) and _lacks_files(error):
        return InputError("Too many open files: raise the limit, as `ulimit -n 4096` does")
    return None


def _lacks_space(error: OSError) -> str:
    """Return what went wrong if a disk or a quota is full, where no file is named, else ""."""
    if "No usable temporary directory" in str(error):
        return " ".join(str(error.strerror).split())
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"a file can't be written ({error.strerror})"
    return ""


def _lacks_files(error: OSError | ImportError) -> bool:
    """Return whether no more file may be opened; the dynamic linker says so in words alone."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error)


def _stdout_is_closed() -> bool:
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    poll = select.poll()
    poll.register(number, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    # Python flushes again at exit and would complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


def _out_of_memory_line(error: BaseException) -> str:
    peak = human(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    detail = " ".join(str(error).split())[:200]
    if library := re.search(r"([^\s/]+\.so[\w.]*): failed to map segment", str(error)):
        detail = f"{library[1]} can't be mapped"
    return (
        f"out of memory{f' ({detail})' if detail else ''}; the peak so far was {peak}"
        + (f" under `ulimit -v {limit >> 10}`" if limit != resource.RLIM_INFINITY else "")
        + ": use more ranks or nodes, fewer ranks per node, or a smaller --halo-buffer"
    )


def end_job(comm: Ranks, error: BaseException) -> int:
    """Report an error once per job and end all ranks; called on each rank that fails.

    Returns the exit status if all ranks raised the same error by `Communicator.agree`; otherwise
    MPI's abort ends this process.
    """
    status = OutOfMemoryError.exit_status  # the likely reason if `of` fails
    try:
        failure = Failure.of(error)
        status = failure.status
        # Free the arrays of the frames that failed: ending the job needs memory.
        traceback.clear_frames(error.__traceback__)
        _end_together(comm, error, failure)
    except BaseException:
        with suppress(Exception):
            os.write(2, _LAST_WORDS)
        if comm.size > 1:
            abort(comm, status)
    return status


def _end_together(comm: Ranks, error: BaseException, failure: Failure) -> None:
    """Return if all ranks end in agreement; otherwise end them."""
    if comm.size > 1:  # if a signal ended this rank now, the launcher would return its bare number
        _handle_signals(lambda number, _: abort(comm, 128 + number))
    comm.location.failing = f"{failure.kind.__name__} {failure.line}"
    flush_output()
    if comm.location.leaving:  # the rank that ends the job has reported
        _handle_signals(signal.SIG_IGN)
        time.sleep(_SILENT_SECONDS)
        abort(comm, failure.status)
    agreed = _agreement(comm, error)
    together = agreed is not None and meet(_MEET_SECONDS)
    if agreed is not None:
        reports, alone = agreed.reports, agreed.alone
    else:
        reports, alone = _settle(comm) if failure.line else (True, False)
    if not reports and not together:
        time.sleep(_SILENT_SECONDS)  # the rank that reports ends the job meanwhile
    if reports or not together:
        failure.print(f"rank {comm.rank}" if alone and comm.size > 1 else "")
    if not together and comm.size > 1:
        _handle_signals(signal.SIG_IGN)  # the launcher's signals would change the status
        time.sleep(_FORWARD_SECONDS)
        abort(comm, failure.status)


def _agreement(comm: Ranks, error: BaseException) -> Agreed | None:
    """Return what `Communicator.agree` found out about the error, if it raised it."""
    if isinstance(error, HpcgnnError):
        return error.agreed
    surprise = comm.location.surprise
    return surprise[1] if surprise is not None and surprise[0] is error else None


def _handle_signals(handler: signal.Handlers | Callable[[int, Any], NoReturn]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _settle(comm: Ranks) -> tuple[bool, bool]:
    """Return whether this rank reports for all failing ones, and whether to name its number.

    The lowest failing rank reports; a rank that only misses another one defers to those with a
    cause.
    """
    if comm.size == 1:
        return True, False
    time.sleep(_SETTLE_SECONDS)
    failing = {r: a.failing for r, a in comm.ask(_ASK_SECONDS).items() if a.failing}
    causes = {r for r, text in failing.items() if not text.startswith(_CONSEQUENCES)}
    own = comm.location.failing
    if own.startswith(_CONSEQUENCES):
        return not causes and all(comm.rank < r for r in failing), False
    everyone = len(failing) == comm.size - 1 and all(text == own for text in failing.values())
    return all(comm.rank < r for r in causes), not everyone


def meet(seconds: float) -> bool:
    """Wait up to `seconds` for all ranks to end in agreement; return whether they did."""
    MPI = _mpi()
    request = MPI.COMM_WORLD.Ibarrier()
    end = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(1e-3)
    return True


def _mpi() -> Any:
    """Return MPI as `mpi_library` loads it; that module itself may be what failed."""
    with suppress(ImportError, RuntimeError):
        if os.environ.get(FORGONE) != "none":
            from mpi4py import MPI

            return MPI
    from hpcgnn.comm import single

    return single


def abort(comm: Ranks | None, status: int) -> NoReturn:
    """End all ranks now, with `status` as the exit status of the job.

    The others get a moment to remove their partial output.
    """
    MPI = _mpi()
    # No error here may keep this rank from ending the others: memory may have run out.
    with suppress(Exception):
        flush_output()
        sys.stderr.flush()
    with suppress(Exception):
        for path in shared_segments(_SEGMENTS):
            path.unlink(missing_ok=True)
    with suppress(Exception):
        whole = comm if comm is not None and comm.size == MPI.COMM_WORLD.Get_size() else None
        if whole is not None and whole.size > 1:
            whole.stop_others(_LEAVE_SECONDS)
        # srun returns the highest status, and ranks that it ends itself have status 137.
        if whole is not None and _started_by_srun() and whole.end_others(status, _END_SECONDS):
            os._exit(status)
    with suppress(Exception):
        # MPI would add its own lines to our message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    MPI.COMM_WORLD.Abort(status)
    os._exit(status)


def _started_by_srun() -> bool:
    names = os.environ.keys()
    return "SLURM_STEP_ID" in names and not names & {"HYDI_CONTROL_FD", "OMPI_COMM_WORLD_RANK"}


def shared_segments(prefixes: tuple[str, ...]) -> list[Path]:
    """Return the files in /dev/shm through which the MPI library communicates within the node."""
    shared = loaded_files("/dev/shm/")
    return [path for path in shared if path.name.startswith(prefixes) and path.exists()]
