"""Nodes by the ids that the user knows them by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.draws import unit
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces


@dataclass(frozen=True)
class UserIds:
    """Ask by `graph.derived(FindUserIds())`, on all ranks; each knows its share of the ids.

    Attributes:
        ids: int64, ascending, those that this rank knows the places of.
        places: int64, of these.
    """

    comm: Communicator
    ids: np.ndarray
    places: np.ndarray

    def places_of(self, ids: np.ndarray, file: str | Path | None = None) -> np.ndarray:
        """The places of nodes, int64; collective.

        Raises:
            InputError: no node has one of the ids.
        """
        order, cuts = _by_holder(self.comm, ids)
        answers = []
        for asked in self.comm.alltoallv(np.split(ids[order], cuts), where="look up ids"):
            at = np.searchsorted(self.ids, asked)
            found = np.append(self.ids, -1)[at] == asked
            answers.append(np.where(found, np.append(self.places, -1)[at], -1))
        places = np.empty(len(ids), np.int64)
        places[order] = np.concatenate(self.comm.alltoallv(answers, where="look up ids"))
        with agreed(self.comm, "look up ids"):
            if (places < 0).any():
                unknown = int(ids[np.argmax(places < 0)])
                raise InputError("no node has this id", file=file, value=unknown)
        return places


@dataclass(frozen=True)
class FindUserIds:
    """Derives where nodes are by their original ids."""

    def build(self, graph: PartitionedGraph) -> UserIds:
        comm, ids = graph.comm, graph.original_ids.cpu().numpy()
        places = graph.derived(FindPlaces()).first + np.arange(len(ids), dtype=np.int64)
        order, cuts = _by_holder(comm, ids)
        told = comm.alltoallv(np.split(ids[order], cuts), where="places of ids")
        where = comm.alltoallv(np.split(places[order], cuts), where="places of ids")
        mine, theirs = np.concatenate(told), np.concatenate(where)
        ascending = np.argsort(mine)
        return UserIds(comm, mine[ascending], theirs[ascending])


def _by_holder(comm: Communicator, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order of the ids by the ranks that know them, and where each rank's end."""
    holder = (unit(0, ids) * comm.size).astype(np.int64)
    order = np.argsort(holder, kind="stable")
    return order, np.searchsorted(holder[order], np.arange(1, comm.size))
