"""Programs as forks of a process that has loaded their libraries, which take each of them seconds.

    python -IS tests/forked.py SOCKET [-P] (-m MODULE | -c CODE | - | SCRIPT) ARGUMENT...

is `python` with the same arguments for whoever starts it: the process that serves at SOCKET forks,
and the fork gets environment, folder and open files of this one, and its signals; this one ends as
the fork does. Ranks are started so by mpiexec. Nothing of hpcgnn is loaded before the fork.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from array import array
from contextlib import suppress

TYPE_CHECKING = False  # `typing` takes as long to load as all the rest
if TYPE_CHECKING:
    from typing import Any

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
LIBRARIES = ("torch", "numpy", "scipy.sparse", "h5py", "mpi4py")
SIZE = 8  # bytes of a number on the wire
MOST_FILES = 250  # what one message may carry
ABOVE = 512  # numbers of files that a fork doesn't get from who asked
PDEATHSIG = 1  # in <linux/prctl.h>: the signal that a process gets when its parent ends


def ask(path: str, arguments: list[str]) -> int:
    """The status of a fork of the process behind `path`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    heard = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]  # noqa: PTH208
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(path)
        order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
        order |= {"files": files, "ignored": list(SIGNALS.difference(heard))}
        text = json.dumps(order).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))]
        wire.sendmsg([len(text).to_bytes(SIZE, "little")], rights)
        wire.sendall(text)
        fork = _number(wire)
        for one in heard:
            signal.signal(one, lambda number, frame: os.kill(fork, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = os.waitstatus_to_exitcode(_number(wire))
    if status < 0:
        if -status in SIGNALS:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the folder that was listed
        return False
    return True


def _number(wire: socket.socket) -> int:
    return int.from_bytes(_bytes(wire, SIZE), "little")


def _bytes(wire: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = wire.recv(count - len(found))
        if not more:
            raise ConnectionError("the other process is gone")
        found += more
    return found


class Server:
    """Forks for each who asks at `path`."""

    def __init__(self, path: str) -> None:
        self.forks: dict[int, socket.socket] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)

    def serve(self) -> dict[str, Any] | None:
        """Until stdin ends: returns None then, and in a fork what it is to do."""
        ended, end = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            wires = {wire.fileno(): fork for fork, wire in self.forks.items()}
            waits = select.poll()
            for file in (0, ended, self.listener.fileno(), *wires):
                waits.register(file, select.POLLIN)
            for file, _ in waits.poll():
                if file == 0:
                    for fork in self.forks:
                        os.kill(fork, signal.SIGKILL)
                    return None
                if file == ended:
                    os.read(ended, 4096)
                    self._tell_ends()
                elif file in wires:  # who asked has been killed
                    self._forget(wires[file])
                elif order := self._fork():
                    return order

    def _fork(self) -> dict[str, Any] | None:
        wire, _ = self.listener.accept()
        head, files, _, _ = socket.recv_fds(wire, SIZE, MOST_FILES)
        order: dict[str, Any] = json.loads(_bytes(wire, int.from_bytes(head, "little")))
        fork = os.fork()
        if not fork:
            end_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (self.listener, wire, *self.forks.values()):
                one.detach()
            _take(files, order["files"])
            return order
        for file in files:
            os.close(file)
        self.forks[fork] = wire
        wire.sendall(fork.to_bytes(SIZE, "little"))
        return None

    def _tell_ends(self) -> None:
        while self.forks:
            fork, status = os.waitpid(-1, os.WNOHANG)
            if not fork:
                return
            if fork in self.forks:
                with self.forks.pop(fork) as wire, suppress(OSError):
                    wire.sendall(status.to_bytes(SIZE, "little"))

    def _forget(self, fork: int) -> None:
        if fork in self.forks:
            os.kill(fork, signal.SIGKILL)
            os.waitpid(fork, 0)
            self.forks.pop(fork).close()


def end_with_parent() -> None:
    import ctypes

    c = ctypes.CDLL(None)
    if hasattr(c, "prctl"):  # of Linux
        c.prctl(PDEATHSIG, int(signal.SIGKILL))


def _take(files: list[int], numbers: list[int]) -> None:
    """Files under the numbers they had where they come from; no others stay open."""
    import fcntl

    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, ABOVE) for file in files]
    os.closerange(0, ABOVE)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def end_before_the_libraries() -> None:
    """Leave out, at the end of this process, what the libraries loaded so far do in `exit`.

    PyTorch's destructors take 0.3 s. Python's end comes before, and what is loaded later.
    """
    import ctypes

    c = ctypes.CDLL(None)
    if hasattr(c, "on_exit"):  # of glibc
        c.on_exit(c._exit, None)
        c.on_exit(c.fcloseall, None)  # called before, as the later one


def run(order: dict[str, Any]) -> None:
    """What `python` does with these arguments."""
    import runpy
    from pathlib import Path

    end_before_the_libraries()
    for one in order["ignored"]:
        signal.signal(one, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    given = order["arguments"]
    safe = given[0] == "-P" or "PYTHONSAFEPATH" in os.environ
    what, *rest = given[given[0] == "-P" :]
    option = what in ("-m", "-c", "-")
    first = order["folder"] if option else str(Path(what).absolute().parent)
    more = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path not in sys.path]
    sys.path[:1] = filter(None, ["" if safe else first, *more])
    sys.argv[:] = ["-c", *rest[1:]] if what == "-c" else rest if what == "-m" else [what, *rest]
    if what in ("-c", "-"):
        exec(rest[0] if what == "-c" else sys.stdin.read(), {"__name__": "__main__"})
    elif what == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


def main() -> None:
    """`python -m tests.forked SOCKET [MODULE...]`: serve, with each MODULE loaded first.

    Its function `load`, if it has one, is called.
    """
    import gc
    import importlib

    server = Server(sys.argv[1])
    print("ready", flush=True)
    for name in sys.argv[2:]:
        getattr(importlib.import_module(name), "load", lambda: None)()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    order = server.serve()
    if order is not None:
        run(order)


if __name__ == "__main__":
    if __spec__ is None:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    main()
