"""Whether the machines of a job have the memory that its ranks need."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import human
from hpcgnn.system import available_memory


@dataclass(frozen=True)
class Shortage:
    """A machine whose ranks together need more bytes than are available."""

    host: str
    needed: int
    available: int

    def ranks(self, size: int) -> int:
        """Return how many ranks would suffice, with as many on each machine as now."""
        return -(-size * self.needed // max(self.available, 1))

    def __str__(self) -> str:
        return f"{human(self.needed)} on {self.host}, where {human(self.available)} are free"


def shortage(comm: Communicator, needed: float) -> Shortage | None:
    """Return the machine that lacks most memory for each rank's `needed` bytes, None if none does.

    Collective.
    """
    own = socket.gethostname(), int(needed), available_memory()
    machines: dict[str, Shortage] = {}
    for host, bytes_, free in comm.allgather(own, where="memory of the machines"):
        before = machines.get(host, Shortage(host, 0, free))
        machines[host] = Shortage(host, before.needed + bytes_, min(before.available, free))
    worst = max(machines.values(), key=lambda one: one.needed / max(one.available, 1))
    return worst if worst.needed > worst.available else None
