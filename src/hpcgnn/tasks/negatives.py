"""False pairs: the target of a true pair replaced by a node drawn at random.

A draw depends on (seed, epoch, number of the pair, which of its draws) alone, so that the loss does
not depend on the number of ranks or the partition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.draws import below, key_of, unit
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import EdgeEnds, FindPlaces, Places
from hpcgnn.sar.pairs import NodePairs

_TRIES = 16  # a node that has nearly all others as neighbours may get a true one after so many


@dataclass(frozen=True)
class KnownEdges:
    """All edges of a graph, each known by its target's rank: `source place, target place`."""

    places: Places
    keys: np.ndarray  # of the edges into local nodes, ascending

    @staticmethod
    def of(graph: PartitionedGraph) -> KnownEdges:
        """Every edge, also those that no message goes along; collective."""
        places = graph.derived(FindPlaces())
        source, target = graph.derived(EdgeEnds())
        keys = (target - places.first) * graph.num_nodes + source
        return KnownEdges(places, np.unique(keys))

    def contain(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Whether there is an edge between these places: bool; collective."""
        comm, places = self.places.comm, self.places
        owner = places.owner(target)
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(1, comm.size))
        ends = np.stack([source, target], axis=1)[order]
        answers = []
        for asked in comm.alltoallv(np.split(ends, cuts), where="look for edges"):
            keys = (asked[:, 1] - places.first) * places.first_P1[-1] + asked[:, 0]
            at = np.searchsorted(self.keys, keys)
            answers.append(np.append(self.keys, -1)[at] == keys)
        found = np.empty(len(order), bool)
        found[order] = np.concatenate(comm.alltoallv(answers, where="look for edges"))
        return found


def false_targets(
    edges: KnownEdges, pairs: NodePairs, count: int, *, seed: int, epoch: int
) -> np.ndarray:
    """Places of `count` nodes for each pair, int64 `[m, count]`; collective.

    None of them is the source, or has an edge from it, unless after many draws.
    """
    comm, places = edges.places.comm, edges.places
    num_nodes = int(places.first_P1[-1])
    number = np.repeat(pairs.number, count)
    which = np.tile(np.arange(count), len(pairs))
    source = np.repeat(pairs.source, count)
    found = np.zeros(len(number), np.int64)
    left = np.arange(len(number))
    for attempt in range(_TRIES):
        drawn = below(key_of(seed, epoch, attempt), num_nodes, number[left], which[left])
        found[left] = places.of_ids(drawn)
        wrong = edges.contain(source[left], found[left]) | (source[left] == found[left])
        left = left[wrong]
        if not _any(comm, len(left)):
            break
    return found.reshape(len(pairs), count)


def share_of(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Bool: a sample of things by their numbers, the same on any number of ranks."""
    return unit(key_of(seed, 0, _TRIES), numbers) < share


def _any(comm: Communicator, count: int) -> bool:
    return bool(comm.allreduce(count, "max", where="false pairs"))
