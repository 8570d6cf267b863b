"""Detection of ranks of this node that ended before MPI started, which others would wait for."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from hpcgnn.comm.launcher import place
from hpcgnn.comm.liveness.shared_memory import local_place
from hpcgnn.system import ProcessState, environment_of, processes


@dataclass(frozen=True)
class Neighbours:
    """The ranks of this node.

    `alive`: those whose processes exist; `expected`: how many were started; `size`: the number of
    ranks of the job.
    """

    alive: frozenset[int]
    expected: int
    size: int

    @classmethod
    def look(cls) -> Neighbours | None:
        """Return this node's ranks; None if the launcher can't be seen, as in a container."""
        states, own = processes(), _place(os.getpid())
        if own is None or os.getpid() not in states:
            return None
        launcher = _launcher(states, own)
        if launcher is None:
            return None
        started = [
            number
            for number, state in states.items()
            if state.parent == launcher and state.letter not in "ZX"
        ]
        if any(environment_of(number) is None for number in started):
            return None  # of another user: it may be a rank
        places = [found for found in map(_place, started) if found is not None]
        alive = frozenset(rank for rank, size in places if size == own[1])
        return cls(alive, local_place()[1], own[1])

    @property
    def missing(self) -> str:
        """The ranks that have ended, as part of a sentence; empty if none has."""
        ended = self.expected - len(self.alive)
        if ended <= 0:
            return ""
        if self.expected < self.size:
            return f"{ended} of the {self.expected} ranks on {socket.gethostname()}"
        ranks = sorted(set(range(self.size)) - self.alive)
        named = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        return f"rank{'s' if len(ranks) > 1 else ''} {named}"


def _launcher(states: dict[int, ProcessState], own: tuple[int, int]) -> int | None:
    """Return the process that started the ranks of this node, possibly through a user's scripts."""
    number = os.getpid()
    while number in states and _place(number) == own:
        number = states[number].parent
    return number if number in states and number > 1 else None


def _place(number: int) -> tuple[int, int] | None:
    return place(environment_of(number) or {})
