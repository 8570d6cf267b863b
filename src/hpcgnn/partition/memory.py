"""Whether a method fits the memory of the machines: estimated before it is called."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hpcgnn.comm.communicator import Communicator
from hpcgnn.system import available_memory


def parmetis_bytes(num_nodes: int, neighbours: int, ranks: int, index_bytes: int) -> float:
    """What ParMETIS takes on each rank beside the graph it is given."""
    return index_bytes * (30.0 * num_nodes + 20.0 * neighbours) / ranks


def kaminpar_bytes(num_nodes: int, neighbours: int) -> float:
    """What KaMinPar's process takes, the graph included."""
    return 100.0 * num_nodes + 20.0 * neighbours


@dataclass(frozen=True)
class Shortage:
    """A machine on which all its ranks need more bytes than there are."""

    host: str
    needed: int
    available: int

    def ranks(self, size: int) -> int:
        """How many ranks would do, as many on each machine as now."""
        return -(-size * self.needed // max(self.available, 1))

    def __str__(self) -> str:
        return (
            f"{self.needed / 2**30:,.1f} GiB on {self.host}, "
            f"where {self.available / 2**30:,.1f} GiB are free"
        )


def shortage(comm: Communicator, needed: float) -> Shortage | None:
    """The machine that falls most short, where each rank needs so many bytes. Collective."""
    own = socket.gethostname(), int(needed), available_memory()
    machines: dict[str, Shortage] = {}
    for host, bytes_, free in comm.allgather(own, where="memory of the machines"):
        before = machines.get(host, Shortage(host, 0, free))
        machines[host] = Shortage(host, before.needed + bytes_, min(before.available, free))
    worst = max(machines.values(), key=lambda one: one.needed / max(one.available, 1))
    return worst if worst.needed > worst.available else None
