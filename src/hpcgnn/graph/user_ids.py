"""Nodes by the ids that the user knows them by: numbers, or texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.draws import unit

_WORD = 8  # bytes


@dataclass(frozen=True)
class UserIds:
    """Where the nodes of all ranks are; each rank knows its share of the ids.

    Attributes:
        ids: int64, or bytes (UTF-8) of one width; ascending, those that this rank knows.
        places: int64, of these.
    """

    comm: Communicator
    ids: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, comm: Communicator, ids: np.ndarray, first: int) -> Self:
        """From the ids of each rank's nodes, of one type; collective.

        Args:
            first: the place of this rank's first node.
        """
        places = first + np.arange(len(ids), dtype=np.int64)
        order, cuts = _by_holder(comm, ids)
        told = comm.alltoallv(np.split(ids[order], cuts), where="places of ids")
        where = comm.alltoallv(np.split(places[order], cuts), where="places of ids")
        mine, theirs = np.concatenate(told), np.concatenate(where)
        ascending = np.argsort(mine)
        return cls(comm, mine[ascending], theirs[ascending])

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The places of nodes, int64, -1 where no node has the id; collective."""
        order, cuts = _by_holder(self.comm, ids)
        answers = []
        for asked in self.comm.alltoallv(np.split(ids[order], cuts), where="look up ids"):
            at = np.minimum(np.searchsorted(self.ids, asked), len(self.ids) - 1)
            if len(self.ids):
                answers.append(np.where(self.ids[at] == asked, self.places[at], -1))
            else:
                answers.append(np.full(len(asked), -1, np.int64))
        places = np.empty(len(ids), np.int64)
        places[order] = np.concatenate(self.comm.alltoallv(answers, where="look up ids"))
        return places

    def places_of(self, ids: np.ndarray, file: str | Path | None = None) -> np.ndarray:
        """The places of nodes, int64; collective.

        Raises:
            InputError: no node has one of the ids.
        """
        places = self.find(ids)
        with agreed(self.comm, "look up ids"):
            if (places < 0).any():
                raise unknown(ids[np.argmax(places < 0)], file)
        return places


def unknown(value: object, file: str | Path | None) -> InputError:
    """No node is called so."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return InputError(
        "no node has this id", file=file, value=value if isinstance(value, str) else int(str(value))
    )


def _by_holder(comm: Communicator, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order of the ids by the ranks that know them, and where each rank's end."""
    holder = (unit(0, _numbers(ids)) * comm.size).astype(np.int64)
    order = np.argsort(holder, kind="stable")
    return order, np.searchsorted(holder[order], np.arange(1, comm.size))


def _numbers(ids: np.ndarray) -> np.ndarray:
    """The ids, or numbers made of texts: the same for a text of any width."""
    if ids.dtype.kind != "S":
        return ids
    width = -(-ids.dtype.itemsize // _WORD)
    words = ids.astype(f"S{width * _WORD}").view(np.int64).reshape(len(ids), width)
    powers = np.int64(0x5851F42D4C957F2D) ** np.arange(width, dtype=np.int64)
    numbers: np.ndarray = (words * powers).sum(axis=1)
    return numbers
