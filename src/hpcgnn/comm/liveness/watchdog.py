"""Finds the rank that is lost, or that waits at another place than the others."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.comm.liveness.heartbeat import Heartbeat, Peer
from hpcgnn.comm.liveness.location import Location, Report, stack_of
from hpcgnn.errors import CommunicationError, warn

if TYPE_CHECKING:
    from mpi4py import MPI


ASK_SECONDS = 2.0
WORKING_SECONDS = 1.0
WORKING_CPU = 0.01
MOST_LIMITS = 10
GLANCE_SECONDS = 0.3
MOST_PATIENCE = 120.0  # a network may stall this long, and all ranks with it
_STATES = {"T": "is stopped", "t": "is held by a debugger", "Z": "has died"}


class LostRank(CommunicationError):
    """An error for a rank that doesn't answer or is at another place.

    Attributes: `trace`: lines that give the locations of the missing ranks.
    """

    def __init__(self, message: str, trace: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.trace = list(trace)


class Watchdog:
    """An examination of all ranks' locations, when this rank has waited too long."""

    def __init__(self, heartbeat: Heartbeat, location: Location) -> None:
        self._heartbeat = heartbeat
        self._location = location
        self._stuck: dict[int, str] = {}  # places of the others when last asked, if all waited

    @property
    def _own(self) -> Peer:
        return self._heartbeat.peers[self._heartbeat.rank]

    def examine(self, ranks: Sequence[int], where: str, waited: float, limit: float) -> None:
        """Examine the ranks; called when `where` has taken `waited` seconds, a multiple of `limit`.

        Raises LostRank with the ranks that stopped answering or wait elsewhere. Returns, to grant
        more time, while the ranks that are not here compute or are blocked, up to ten limits.
        """
        others = [self._heartbeat.peers[r] for r in ranks if r != self._own.rank]
        reports = self._heartbeat.ask(ranks, ASK_SECONDS)
        away = [p for p in others if p.rank not in reports or not reports[p.rank].waiting]
        working = self._working(away, reports, blocked=waited < MOST_LIMITS * limit)
        here = self._here(where, waited)
        silent = [p for p in others if p.rank not in reports and p.rank not in working]
        self._refuse_silent(silent, here)
        if away and all(p.rank in working for p in away) and waited < MOST_LIMITS * limit:
            self._warn(away[0], reports, here)
        else:
            elsewhere = away or [p for p in others if reports[p.rank].waiting != where]
            self._blame(elsewhere, reports, here)

    def examine_standstill(self, where: str, waited: float, limit: float) -> None:
        """Check for a deadlock; called every few seconds on a rank that waits in `where`.

        Raises LostRank once all ranks have waited for long, and not in the same place: none of them
        can reach the others then.
        """
        patience = min(limit / 4, MOST_PATIENCE)
        others = [peer for peer in self._heartbeat.peers if peer.rank != self._own.rank]
        if waited < patience:
            self._stuck = {}
            return
        reports = self._heartbeat.ask(range(len(self._heartbeat.peers)), GLANCE_SECONDS)
        waiting = {r: a.waiting for r, a in reports.items() if a.waiting and a.waited >= patience}
        before, self._stuck = self._stuck, waiting if len(waiting) == len(others) else {}
        if self._stuck and before == self._stuck:
            elsewhere = [peer for peer in others if waiting[peer.rank] != where]
            if elsewhere:
                self._blame(elsewhere, reports, self._here(where, waited))

    def examine_silent(self, ranks: Sequence[int], where: str, waited: float, limit: float) -> None:
        """Raise LostRank if a rank doesn't answer; ranks that answer may take any time.

        A rank that is blocked has ten limits.
        """
        reports = self._heartbeat.ask(ranks, ASK_SECONDS)
        away = [self._heartbeat.peers[r] for r in ranks if r not in reports and r != self._own.rank]
        working = self._working(away, reports, blocked=waited < MOST_LIMITS * limit)
        here = self._here(where, waited)
        self._refuse_silent([p for p in away if p.rank not in working], here)

    def _here(self, where: str, waited: float) -> str:
        place = self._location.place[0]
        return f"rank {self._own.number} waited {waited:.0f} s in {where!r} (at {place!r})"

    def _refuse_silent(self, silent: Sequence[Peer], here: str) -> None:
        if silent:
            named = ", ".join(f"{peer}{self._state(peer)}" for peer in silent[:4])
            more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
            distant = {p.rank for p in self._heartbeat.peers if p.network != self._own.network}
            blocked = distant and distant <= {p.rank for p in silent}
            hint = " (no other node answers: is UDP between nodes blocked?)" if blocked else ""
            raise LostRank(f"{named}{more} stopped answering{hint}; {here}")

    def _working(
        self, away: Sequence[Peer], first: dict[int, Report], *, blocked: bool
    ) -> set[int]:
        """Return the ranks of `away` whose processes are using the processor now.

        With `blocked`, the result includes those whose processes exist but don't answer.
        """
        before = {p.rank: self._cpu(p, first.get(p.rank)) for p in away}
        if not away:
            return set()
        time.sleep(WORKING_SECONDS)
        second = self._heartbeat.ask([p.rank for p in away if p.rank in first], ASK_SECONDS)
        after = {p.rank: self._cpu(p, second.get(p.rank)) for p in away}
        working = {r for r in before if after[r] - before[r] >= WORKING_CPU}
        if blocked:
            working |= self._blocked([p for p in away if p.rank not in second.keys() | working])
        return working

    def _blocked(self, silent: Sequence[Peer]) -> set[int]:
        """Return silent ranks whose processes exist: they hold the GIL or wait for a disk."""
        states = {peer.rank: peer.state() for peer in silent}
        known = [p for p in silent if p.space == self._own.space]
        fine = {p.rank for p in known if (s := states[p.rank]) and s.letter not in _STATES}
        distant = [p.rank for p in silent if p.space != self._own.space]
        return fine | self._heartbeat.alive(distant, ASK_SECONDS)

    def _cpu(self, peer: Peer, report: Report | None) -> float:
        if report is not None:
            return report.cpu
        state = peer.state()
        return state.cpu if state else 0.0

    def _state(self, peer: Peer) -> str:
        state = peer.state()
        if state is None:
            return " [process is gone]" if peer.space == self._own.space else ""
        return f" [process {_STATES[state.letter]}]" if state.letter in _STATES else ""

    def _warn(self, peer: Peer, reports: dict[int, Report], here: str) -> None:
        if any(r < self._own.rank and report.waiting for r, report in reports.items()):
            return
        text = f"hpcgnn: warning: {here}: {_sentence(peer, reports.get(peer.rank))}, " + (
            "working" if peer.rank in reports else "its process exists"
        )
        warn(text)

    def _blame(self, elsewhere: Sequence[Peer], reports: dict[int, Report], here: str) -> None:
        if not elsewhere:
            raise LostRank(f"{here}, and so did all others: a message was lost")
        trace = []
        for peer in elsewhere[:4]:
            stack = reports[peer.rank].stack if peer.rank in reports else []
            trace += [f"{peer} is at:", *(f"    {line}" for line in stack)]
        sentences = "; ".join(_sentence(p, reports.get(p.rank)) for p in elsewhere[:4])
        raise LostRank(
            f"{here}, but {sentences} (if it is only slow, --timeout gives more time)",
            trace,
        )


def _sentence(peer: Peer, report: Report | None) -> str:
    if report is None:
        return f"{peer} does not answer"
    text = f"{peer} has been at {report.place!r} for {report.since:.0f} s"
    if report.waiting:
        text += f", waiting in {report.waiting!r}"
    elif report.stack:
        text += f" ({report.stack[0]})"
    return text


_TEXT = 4000


def signature(operation: str, where: str, value: Any = None) -> str:
    """Return a text that must be the same on all ranks: operation, place, dtype and shape."""
    kind = f" of {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else ""
    return f"{operation}{kind} {where!r}"


def check(mpi: MPI.Comm, text: str, wait: Callable[[MPI.Request], None]) -> None:
    """Raise LostRank on all ranks, with stacks, unless `text` is the same on all. Collective."""
    size = mpi.Get_size()
    own = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.int64)
    hashes_P = np.empty(size, np.int64)
    wait(mpi.Iallgather(own, hashes_P))
    if (hashes_P == hashes_P[0]).all():
        return
    account = pickle.dumps((text[:400], stack_of()))[:_TEXT]
    accounts = np.zeros((size, _TEXT), np.uint8)
    padded = np.zeros(_TEXT, np.uint8)
    padded[: len(account)] = np.frombuffer(account, np.uint8)
    wait(mpi.Iallgather(padded, accounts))
    raise _out_of_step([pickle.loads(row.tobytes()) for row in accounts])


def _out_of_step(accounts: list[tuple[str, list[str]]]) -> LostRank:
    usual = Counter(text for text, _ in accounts).most_common(1)[0][0]
    elsewhere = [rank for rank, (text, _) in enumerate(accounts) if text != usual]
    trace = []
    for rank in [next(r for r, (text, _) in enumerate(accounts) if text == usual), *elsewhere[:4]]:
        text, stack = accounts[rank]
        trace += [f"rank {rank} is at {text}:", *(f"    {line}" for line in stack)]
    named = "; ".join(f"rank {rank} is at {accounts[rank][0]}" for rank in elsewhere[:4])
    return LostRank(f"{named}, while the others are at {usual}", trace)
