"""Liveness and location of the ranks: each answers short questions over UDP, beside MPI.

A sleeping thread per rank answers; it makes no MPI calls and costs nothing until it is asked. Every
datagram carries a keyed hash under a random token of this job, and its content is used as bounded
text only.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass

from hpcgnn.comm.liveness.location import Report
from hpcgnn.system import ProcessState, namespace

_HASH = 16
_HEAD = struct.Struct("!cIi")
_ASK, _ANSWER, _LEAVE, _END, _BROKEN = b"?", b"!", b"L", b"X", b"B"
_LARGEST = 1400
_ASK_AGAIN = 0.25
_POLL = 0.01
_MOST_TOLD = 500  # bytes
_TIMES_TOLD = 2  # datagrams may be lost
_BACKLOG = 4096  # connections not accepted while the process is blocked


@dataclass(frozen=True)
class Peer:
    """One process of the job and the address at which it answers.

    `rank` is its rank in the communicator, `number` its rank in the whole job.
    Processes of one `network` reach each other over loopback; those of one `space` see each other's
    process numbers.
    """

    rank: int
    number: int
    host: str
    pid: int
    birth: str
    space: str
    network: str
    address: tuple[str, int] = ("", 0)

    @classmethod
    def here(cls, rank: int, number: int) -> Peer:
        """Return the calling process as a peer."""
        pid = os.getpid()
        state = ProcessState.of(pid)
        birth = state.birth if state else ""
        host = socket.gethostname()
        return cls(rank, number, host, pid, birth, namespace("pid"), namespace("net"))

    def state(self) -> ProcessState | None:
        """Return the state of this process; None if it has ended or can't be seen."""
        if self.space != namespace("pid"):
            return None
        state = ProcessState.of(self.pid)
        return state if state and state.birth == self.birth else None

    def __str__(self) -> str:
        return f"rank {self.number} (host {self.host}, pid {self.pid})"


def local_address(own: Peer, peers: Sequence[Peer]) -> str:
    """Return the address at which all peers reach this process."""
    elsewhere = {peer.host for peer in peers if peer.network != own.network}
    if not elsewhere:
        return "127.0.0.1"
    # Connecting a UDP socket sends nothing: it only asks which way a packet would go.
    for target in (*sorted(elsewhere)[:3], "10.255.255.255"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
            except OSError:
                time.sleep(_ASK_AGAIN)
                continue
            address = probe.getsockname()[0]
            if not address.startswith("127."):
                return address
    return "127.0.0.1"


def _sockets(address: str) -> tuple[socket.socket, socket.socket]:
    """Return a listening TCP socket and a UDP socket on the same port."""
    while True:
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        door.bind((address, 0))
        door.listen(_BACKLOG)
        door.setblocking(False)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagrams.bind(door.getsockname())
        except OSError:  # the UDP port is taken
            door.close()
            datagrams.close()
        else:
            return door, datagrams


class Heartbeat:
    """One rank's side of the questions and answers: asks other ranks for reports, and answers.

    `report`, and `leave` when another rank requests it, are called in the answering thread.
    `meet(peers, token)` must be called once before any question; until then this rank does not
    answer.

    Attributes:
        told: why another rank refuses to continue, as it said; empty until then.
    """

    def __init__(
        self,
        rank: int,
        address: str,
        report: Callable[[], Report],
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank = rank
        self.peers: list[Peer] = []
        self.told = ""
        self._key = b""
        self._report = report
        self._leave = leave
        self._sequence = 0
        self._answers: dict[int, dict[int, Report]] = {}
        self._lock = threading.Lock()
        self._open = True
        self._ready = selectors.DefaultSelector()  # its error would go unnoticed in the thread
        self._door, self._socket = _sockets(address)
        self.address: tuple[str, int] = self._socket.getsockname()

    def meet(self, peers: Sequence[Peer], token: bytes) -> None:
        """Set the addresses and the token of the ranks, and begin to answer."""
        self.peers = list(peers)
        self._key = token
        self._thread = threading.Thread(target=self._serve, name="hpcgnn-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the socket."""
        if self._open:
            self._open = False
            with suppress(OSError):  # the thread may have closed the socket already
                self._socket.sendto(b"", self.address)

    def ask(self, ranks: Iterable[int], seconds: float) -> dict[int, Report]:
        """Return the reports of `ranks` that answer within `seconds`, by rank."""
        missing = set(ranks) - {self.rank}
        with self._lock:
            self._sequence += 1
            number = self._sequence
            self._answers[number] = {}
        question = self._seal(_ASK, number, b"")
        end = time.monotonic() + seconds
        again = 0.0
        try:
            while missing and time.monotonic() < end:
                if time.monotonic() >= again:
                    again = time.monotonic() + _ASK_AGAIN
                    for rank in missing:
                        self._send(question, self.peers[rank].address)
                time.sleep(_POLL)
                with self._lock:
                    missing -= self._answers[number].keys()
        finally:
            with self._lock:
                answers = self._answers.pop(number)
        return answers

    def alive(self, ranks: Iterable[int], seconds: float) -> set[int]:
        """Return the ranks whose processes exist, even if they don't answer.

        The operating system accepts connections for a process that holds the GIL or waits for a
        disk, and refuses them once the process has ended.
        """
        end = time.monotonic() + seconds
        found: set[int] = set()
        with ExitStack() as probes, selectors.DefaultSelector() as pending:
            for rank in ranks:
                probe = probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                probe.setblocking(False)
                if probe.connect_ex(self.peers[rank].address) in (0, errno.EINPROGRESS):
                    pending.register(probe, selectors.EVENT_WRITE, (rank, probe))
            while pending.get_map() and (left := end - time.monotonic()) > 0:
                for key, _ in pending.select(left):
                    rank, probe = key.data
                    pending.unregister(probe)
                    if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        found.add(rank)
        return found

    def stop_others(self, seconds: float) -> None:
        """Make all other ranks leave what they do, and wait until they report that they fail."""
        order = self._seal(_LEAVE, 0, b"")
        end = time.monotonic() + seconds
        busy = set(range(len(self.peers))) - {self.rank}
        while busy and time.monotonic() < end:
            for rank in busy:
                self._send(order, self.peers[rank].address)
            busy -= {r for r, report in self.ask(busy, 2 * _POLL).items() if report.failing}

    def end_others(self, status: int, seconds: float) -> bool:
        """Make all other ranks exit with `status` now; return whether none answers after that."""
        order = self._seal(_END, status, b"")
        end = time.monotonic() + seconds
        living: Iterable[int] = range(len(self.peers))
        while living and time.monotonic() < end:
            for rank in set(living) - {self.rank}:
                self._send(order, self.peers[rank].address)
            living = self.ask(living, 2 * _POLL)
        return not living

    def tell(self, text: str) -> None:
        """Tell all other ranks that this one refuses all further operations, and why."""
        datagram = self._seal(_BROKEN, 0, text.encode()[:_MOST_TOLD])
        for _ in range(_TIMES_TOLD):
            for peer in self.peers:
                if peer.rank != self.rank:
                    self._send(datagram, peer.address)

    def _seal(self, kind: bytes, number: int, body: bytes) -> bytes:
        message = _HEAD.pack(kind, number, self.rank) + body
        return hmac.digest(self._key, message, "sha256")[:_HASH] + message

    def _send(self, datagram: bytes, address: tuple[str, int]) -> None:
        try:
            self._socket.sendto(datagram, address)
        except OSError:
            return  # no answer will come, as if the network had lost it

    def _serve(self) -> None:
        with self._socket, self._door, self._ready as ready:
            ready.register(self._socket, selectors.EVENT_READ, self._answer)
            ready.register(self._door, selectors.EVENT_READ, self._close_probe)
            while self._open:
                try:
                    for key, _ in ready.select():
                        key.data()
                except Exception:  # the next question must be answered whatever came
                    time.sleep(_ASK_AGAIN)

    def _close_probe(self) -> None:
        self._door.accept()[0].close()

    def _answer(self) -> None:
        datagram = self._socket.recvfrom(_LARGEST + 1)[0]
        seal, message = datagram[:_HASH], datagram[_HASH:]
        right = hmac.new(self._key, message, hashlib.sha256).digest()[:_HASH]
        if hmac.compare_digest(seal, right):
            self._receive(message)

    def _receive(self, message: bytes) -> None:
        kind, number, rank = _HEAD.unpack_from(message)
        if not 0 <= rank < len(self.peers):
            return
        if kind == _END and rank != self.rank:
            os._exit(number)
        elif kind == _LEAVE and rank != self.rank:
            self._leave()
        elif kind == _BROKEN and rank != self.rank:
            text = message[_HEAD.size :].decode("utf-8", "replace")
            self.told = self.told or f"rank {self.peers[rank].number} can't continue: {text}"
        elif kind == _ASK:
            self._send(self._seal(_ANSWER, number, self._own_report()), self.peers[rank].address)
        elif kind == _ANSWER:
            try:
                report = Report.from_json(json.loads(message[_HEAD.size :]))
            except (ValueError, KeyError, TypeError, RecursionError):
                return
            with self._lock:
                if number in self._answers:  # else it is late or a duplicate
                    self._answers[number][rank] = report

    def _own_report(self) -> bytes:
        fields = asdict(self._report())
        while True:
            body = json.dumps(fields).encode()
            if len(body) <= _LARGEST - _HASH - _HEAD.size or not fields["stack"]:
                return body
            fields["stack"].pop()
