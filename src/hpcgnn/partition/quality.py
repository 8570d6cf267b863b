"""Quality of a partition: cut edges, halo rows, balance; and the parts that read each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import by_rank
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import Array, Int64, Slabs, distinct, tally
from hpcgnn.partition.simple import random_parts

_WORD = 64
_USELESS = 0.9  # of a random partition's volume
_UNEVEN = 2


class Readers:
    """The parts that have edges from each row of the slab.

    Attributes:
        present: uint64 `[rows, words]`, a bit for each part with an edge from the row.
        single: the same for parts with exactly one such edge.
        edges, cut: int64 `[P]`, this rank's edges into each part, and those of them from others.
        out_edges: int64 `[P]`, edges from this rank's rows, by the part of the row in `outward`.
    """

    def __init__(
        self,
        comm: Communicator,
        problem: Problem,
        owner: Array,
        part_of: Callable[[Int64], Array],
        outward: Array | None = None,
    ) -> None:
        """Read all edges once. Collective.

        Args:
            owner: the part of each row of the slab.
            part_of: returns the part of each of some rows of the graph, ascending. Collective.
            outward: the part of each row by which `out_edges` are counted; None: `owner`.
        """
        self.owner, self.num_parts = owner, problem.num_parts
        self._outward = owner if outward is None else outward
        shape = (len(owner), -(-problem.num_parts // _WORD))
        self.present = np.zeros(shape, np.uint64)
        self.single = np.zeros(shape, np.uint64)
        self.cut, self.edges, self.out_edges = np.zeros((3, problem.num_parts), np.int64)
        slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
        for window in problem.edges.windows(comm):
            reader = owner[window.row + (window.lo - slabs.low)]
            table, place = distinct(window.source, problem.num_nodes)
            remote = part_of(table)[place] != reader
            self.edges += np.bincount(reader, minlength=self.num_parts)
            self.cut += np.bincount(reader[remote], minlength=self.num_parts)
            pairs, counts = tally(window.source.astype(np.int64) * self.num_parts + reader)
            ids = pairs // self.num_parts
            rank = np.searchsorted(slabs.ends, ids, side="right")
            pairs, counts = by_rank(comm, rank, pairs, counts, where="partition: readers")
            order = np.argsort(pairs, kind="stable")  # puts equal pairs of several ranks together
            pairs, counts = pairs[order], counts[order]
            self._add(pairs // self.num_parts - slabs.low, pairs % self.num_parts, counts)

    def _add(self, row: Array, part: Array, count: Array) -> None:
        """Add pairs, ascending by row and part, of which some may be repeated."""
        if not len(row):
            return
        leaving = np.bincount(self._outward[row], count, self.num_parts)
        self.out_edges += leaving.astype(np.int64)
        words = self.present.shape[1]
        pair = row * self.num_parts + part
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        count = np.add.reduceat(count, first)
        slot, bit = row[first] * words + part[first] // _WORD, bits(part[first])
        start = np.flatnonzero(np.diff(slot, prepend=-1))
        slot, added = slot[start], np.bitwise_or.reduceat(bit, start)
        once = np.bitwise_or.reduceat(np.where(count == 1, bit, np.uint64(0)), start)
        present, single = self.present.reshape(-1), self.single.reshape(-1)
        single[slot] = (single[slot] & ~added) | (once & ~present[slot])
        present[slot] |= added

    def abroad(self) -> Array:
        """Return `present` without each row's own part."""
        result = self.present.copy()
        rows = np.arange(len(result))
        result[rows, self.owner // _WORD] &= ~bits(self.owner)
        return result

    def volume(self, comm: Communicator) -> tuple[Int64, Int64]:
        """Return the rows that each part sends and reads, once per reader: int64 `[P]` each.

        Collective.
        """
        abroad = self.abroad()
        copies = np.bitwise_count(abroad).sum(axis=1)
        sent = np.bincount(self.owner, weights=copies, minlength=self.num_parts).astype(np.int64)
        halo = np.array(
            [
                np.count_nonzero(abroad[:, part // _WORD] & bits(np.array(part)))
                for part in range(self.num_parts)
            ]
        )
        sent, halo = comm.allreduce(np.stack([sent, halo]), where="partition: volume")
        return sent, halo


def bits(part: Array) -> Array:
    """Return the bit of each part in its word: uint64."""
    return np.uint64(1) << (part % _WORD).astype(np.uint64)


@dataclass(frozen=True)
class Numbers:
    """Counts per part, int64 `[P]` each, equal on all ranks. Edges are stored edges.

    `halo` counts the remote rows that a part reads, `sent` its rows that others read, once per
    reader, and `cut` the edges into the part from others.
    """

    nodes: Int64
    edges: Int64
    cut: Int64
    halo: Int64
    sent: Int64
    train: Int64
    symmetric: bool | None = None  # whether the graph is; None if not determined

    def summary(self) -> dict[str, Any]:
        """Return plain numbers; a balance is the heaviest part's count over the mean."""
        most = np.maximum(self.halo, self.sent)
        balance = {name: _balance(getattr(self, name)) for name in ("nodes", "edges", "train")}
        return {
            "edge_cut": int(self.cut.sum()),
            "communication_volume": int(self.halo.sum()),
            "communication_volume_max": int(most.max()),
            "halo_nodes": self.halo.tolist(),
            "nodes": self.nodes.tolist(),
            "edges": self.edges.tolist(),
            "train": self.train.tolist(),
            "balance": balance,
        }


def _balance(counts: Int64) -> float:
    total = int(counts.sum())
    return round(int(counts.max()) * len(counts) / total, 4) if total else 1.0


def random_numbers(comm: Communicator, problem: Problem, owner: Array) -> tuple[Numbers, Int64]:
    """Return the counts of a random partition of the same graph. Collective.

    Args:
        owner: the part of each row of this rank's slab, by the partition itself.

    Returns:
        The counts, and the edges from the nodes of each part of the partition itself: int64 `[P]`.
    """
    num_parts = problem.num_parts

    def draw(ids: Array) -> Array:
        return random_parts(ids, problem.num_nodes, num_parts, problem.options.seed)

    part = draw(np.arange(problem.edges.lo, problem.edges.hi))
    readers = Readers(comm, problem, part, draw, outward=owner)
    sent, halo = readers.volume(comm)
    counts = [
        np.bincount(part, minlength=num_parts),
        readers.edges,
        readers.cut,
        np.bincount(part[problem.train], minlength=num_parts),
        readers.out_edges,
    ]
    nodes, edges, cut, train, out_edges = comm.allreduce(np.array(counts, np.int64))
    numbers = Numbers(nodes=nodes, edges=edges, cut=cut, halo=halo, sent=sent, train=train)
    return numbers, out_edges


def table(report: dict[str, Any]) -> str:
    """Return the figures of a report as lines of text, beside those of a random partition."""
    random = report["random"]
    rows = [("", str(report["method"]), "random", "")]

    def add(name: str, key: str) -> None:
        own, other = report[key], random[key]
        share = f"{own / other:.1%}" if other else ""
        rows.append((name, f"{own:,}", f"{other:,}", share))

    add("edge cut", "edge_cut")
    add("communication volume, rows", "communication_volume")
    add("  of the busiest part", "communication_volume_max")
    halo, other_halo = report["halo_nodes"], random["halo_nodes"]
    for name, pick in (("smallest", min), ("largest", max)):
        rows.append((f"halo nodes, {name}", f"{pick(halo):,}", f"{pick(other_halo):,}", ""))
    for name, key in (("nodes", "nodes"), ("edges", "edges"), ("training nodes", "train")):
        own, other = report["balance"][key], random["balance"][key]
        rows.append((f"balance of {name}", f"{own:.3f}", f"{other:.3f}", ""))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    if report["parts"] <= 16:
        lines.append("halo nodes per part         " + " ".join(f"{n:,}" for n in halo))
    return "\n".join(line.rstrip() for line in lines)


def verdict(report: dict[str, Any]) -> str:
    """Return a line that tells what the table means."""
    volume, random = report["communication_volume"], report["random"]["communication_volume"]
    if not random:
        return "nothing is sent: one part, or no edges"
    share, parts = volume / random, report["parts"]
    text = f"each layer of a model sends {volume:,} rows, {share:.0%} of a random partition's"
    if report["method"] == "random":
        return text
    if share >= _USELESS:
        others = [name for name in ("parmetis", "kaminpar") if name != report["method"]]
        return (
            f"{text}: this partition saves little; try --method {' or '.join(others)}, --refine "
            "volume, or fewer parts (a graph without communities has no better partition)"
        )
    if report["communication_volume_max"] * parts > _UNEVEN * volume:
        return f"{text}, the busiest part {_UNEVEN} times its share: --refine volume evens it out"
    return text
