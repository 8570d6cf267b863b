"""Parts as stored on disk, the rules of their format, and checks that they are of one graph."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.launcher import launcher
from hpcgnn.comm.single import Comm as WithoutMPI
from hpcgnn.errors import InputError, counted
from hpcgnn.storage import checks, schema
from hpcgnn.storage.checks import Place
from hpcgnn.storage.fingerprint import MASK, mix64, to_hex
from hpcgnn.storage.read.nodes import NodeData
from hpcgnn.storage.schema import COUNT_NAMES

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

Form = dict[str, tuple[str, tuple[int, ...]]]
Header = dict[str, Any]
_BLOCK = 1 << 16
_IDENTITY = ("fingerprint", "graph_fingerprint", "symmetric", *COUNT_NAMES)


@dataclass
class EdgeLists:
    """Edges into one part r by source part s; local rows and columns are int32.

    Block s holds the edges `edge_ptr[s] .. edge_ptr[s+1]` and the rows `row_ptr[s] ..
    row_ptr[s+1]`. `rows` are the local destinations with an edge in the block (ascending), `counts`
    the number of edges of each, `columns` the local source (s == r) or the position in the receive
    list from s, ascending in each row. `recv_ptr`, `send_ptr` int64 [P+1] delimit the lists of each
    peer (empty for r itself), `send_rows` are the local rows sent, ascending for each peer.
    `labels` and `split` of the edges are None in the reversed graph.
    """

    edge_ptr: np.ndarray
    row_ptr: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    columns: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    features: np.ndarray | None
    recv_ptr: np.ndarray
    send_ptr: np.ndarray
    send_rows: np.ndarray
    labels: np.ndarray | None = None
    split: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in found.items() if array is not None}


@dataclass
class Part:
    """One part; `ids`, `original_ids` are int64 [n]; `out_edges` is None in a symmetric graph."""

    index: int
    num_parts: int
    ids: np.ndarray
    original_ids: np.ndarray | None
    nodes: NodeData
    in_edges: EdgeLists
    out_edges: EdgeLists | None

    @property
    def num_nodes(self) -> int:
        return self.ids.shape[0]

    @property
    def num_edges(self) -> int:
        return self.in_edges.columns.shape[0]

    def sides(self) -> dict[str, EdgeLists]:
        """Return the lists `in` and, unless the graph is symmetric, `out`."""
        sides = {"in": self.in_edges}
        return sides if self.out_edges is None else sides | {"out": self.out_edges}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by their full dataset name."""
        found = {"nodes/ids": self.ids, **self.nodes.arrays()}
        if self.original_ids is not None:
            found["nodes/original_ids"] = self.original_ids
        for side, lists in self.sides().items():
            found |= {f"{side}/{name}": array for name, array in lists.arrays().items()}
        return {f"{part_name(self.index)}/{name}": array for name, array in found.items()}


def part_name(index: int) -> str:
    """Return the name of the HDF5 group of a part."""
    return f"parts/{index:05d}"


def check_ids(ids: np.ndarray, num_nodes: int, place: Place) -> None:
    """Check that all ids lie in `0 .. num_nodes - 1` and none occurs twice."""
    checks.in_range(ids, 0, num_nodes, place)
    ordered = np.sort(ids)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise place.error("a node appears twice", ordered[1:][twice][0])


def check_edges(
    lists: EdgeLists, index: int, num_local: int, num_relations: int, place: Place
) -> None:
    """Check every rule of `EdgeLists`; `place` is the group that holds them.

    Raises:
        InputError: a rule is broken; the error is about the first one.
    """
    checks.pointers(lists.edge_ptr, lists.columns.shape[0], place.below("edge_ptr"))
    checks.pointers(lists.row_ptr, lists.rows.shape[0], place.below("row_ptr"))
    checks.pointers(lists.send_ptr, lists.send_rows.shape[0], place.below("send_ptr"))
    checks.pointers(lists.recv_ptr, int(lists.recv_ptr[-1]), place.below("recv_ptr"))
    checks.in_range(lists.rows, 0, num_local, place.below("rows"))
    checks.in_range(lists.counts, 1, 1 << 31, place.below("counts"))
    checks.in_range(lists.send_rows, 0, num_local, place.below("send_rows"))
    for name in ("recv_ptr", "send_ptr"):
        pointer = getattr(lists, name)
        if pointer[index] != pointer[index + 1]:
            raise place.below(name).error(f"part {index} must not exchange anything with itself")
    for peer in range(lists.edge_ptr.shape[0] - 1):
        _check_block(lists, peer, num_local if peer == index else None, place)
    narrow = len(lists.columns) < 2**31  # the sum of counts, as checked above
    starts = np.cumsum(lists.counts, dtype=np.int32 if narrow else np.int64)
    checks.ascending_in_rows(lists.columns, starts, place.below("columns"))
    if lists.weight is not None:
        checks.finite(lists.weight, place.below("weight"))
    if lists.features is not None:
        checks.finite(lists.features, place.below("features"))
    if lists.relation is not None:
        checks.in_range(lists.relation, 0, num_relations, place.below("relation"))
    if lists.labels is not None:
        schema.check_labels(lists.labels, place.below("labels"))
    if lists.split is not None:
        checks.in_range(lists.split, 0, 4, place.below("split"))


def _check_block(lists: EdgeLists, peer: int, own_width: int | None, place: Place) -> None:
    rows = slice(int(lists.row_ptr[peer]), int(lists.row_ptr[peer + 1]))
    edges = slice(int(lists.edge_ptr[peer]), int(lists.edge_ptr[peer + 1]))
    sent = slice(int(lists.send_ptr[peer]), int(lists.send_ptr[peer + 1]))
    received = int(lists.recv_ptr[peer + 1] - lists.recv_ptr[peer])
    checks.monotone(lists.rows[rows], place.below("rows"), strictly=True)
    checks.monotone(lists.send_rows[sent], place.below("send_rows"), strictly=True)
    total = int(lists.counts[rows].sum(dtype=np.int64))
    if total != edges.stop - edges.start:
        raise place.below("counts").error(f"must add up to the edges of block {peer}", total)
    width = received if own_width is None else own_width
    checks.in_range(lists.columns[edges], 0, width, place.below("columns"))


def new_key() -> int:
    """Return a random 64-bit number."""
    return int.from_bytes(os.urandom(8), "little")


def check_sends(part: Part, place: Place) -> None:
    """Check that the rows sent to each part are those with an edge to it.

    Raises:
        InputError: other rows are sent.
    """
    sides = part.sides()
    for side, lists in sides.items():
        other = sides["in" if side == "out" else "out"] if len(sides) > 1 else lists
        for peer in range(part.num_parts):
            if peer == part.index:
                continue
            sent = lists.send_rows[lists.send_ptr[peer] : lists.send_ptr[peer + 1]]
            if not np.array_equal(sent, other.rows[other.row_ptr[peer] : other.row_ptr[peer + 1]]):
                raise place.below(f"{side}/send_rows").error(
                    f"the rows sent to part {peer} are not those with an edge to it"
                )


class Claims:
    """Facts about one part with which the other parts must agree.

    Attributes:
        form: dtype and row shape of each array.
        fingerprint: the fingerprint of the part.
        ids: a sum of hashes over its nodes.
        received, sent: uint64 [P], sums of hashes over the edges from each part into this one, and
            over those from this one into each.
    """

    def __init__(self, part: Part, fingerprint: int, key: int) -> None:
        skipped = len(part_name(part.index)) + 1
        self.form: Form = {
            name[skipped:]: (array.dtype.name, array.shape[1:])
            for name, array in part.arrays().items()
        }
        self.fingerprint, self.key = fingerprint, key
        self.ids = _sum_ids(part.ids, key)
        out = part.in_edges if part.out_edges is None else part.out_edges
        self.received = _edge_sums(part.in_edges, part.index, key, reverse=False)
        self.sent = _edge_sums(out, part.index, key, reverse=True)

    def check_form(self, first: Form, place: Place) -> None:
        """Raise InputError unless the arrays have the same form as those of part 0."""
        for name in sorted(first.keys() | self.form.keys()):
            here, there = self.form.get(name), first.get(name)
            if here != there:
                raise place.below(name).error(
                    f"{_shown(here)}, but {_shown(there)} in part 0: the parts belong to different "
                    "graphs"
                )


def check_ranks(num_parts: int, comm: Communicator, path: str | Path) -> None:
    """Check that a partition file has one part for each rank.

    Raises:
        InputError: it hasn't; the message says how to start that many ranks.
    """
    if num_parts == comm.size:
        return
    start = counted(num_parts, "rank")
    if num_parts > 1:
        start += f" (`{launcher(num_parts)}...`)"
    if isinstance(comm.mpi, WithoutMPI):
        start += ", but MPI is not installed: pip install mpich"
    elif "SLURM_JOB_ID" in os.environ and num_parts > 1:
        start += f", in a job that was submitted with `--ntasks={num_parts}`"
    raise InputError(
        f"has {counted(num_parts, 'part')} but the job has {counted(comm.size, 'rank')}; "
        f"start {start}, or partition again with --parts {comm.size}",
        file=path,
    )


def check_together(comm: Communicator, header: Header, claims: Claims, place: Place) -> None:
    """Check that the parts, part p on rank p, are of one graph; collective, as are its errors.

    Args:
        header: the header of the file that this rank has opened.
        claims: the facts about this rank's part.
        place: the place of this rank's part.

    Raises:
        InputError: the ranks have opened different files, or the parts are not of one graph.
    """
    where = "compare the parts"
    identities = comm.allgather([header[name] for name in _IDENTITY], where)
    first_form = comm.broadcast(claims.form, where=where)
    low, high = (header["num_nodes"] * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    ids = claims.ids - sum_range(low, high, claims.key)
    sums = comm.allgather((ids, claims.fingerprint), where)
    told = comm.alltoallv([claims.sent[[peer]] for peer in range(comm.size)], where)
    with agreed(comm, where):
        _check_same(identities, place)
        claims.check_form(first_form, place)
        check_sums(Place(place.file, "parts"), sums, header["fingerprint"])
        wrong = np.flatnonzero(claims.received != np.concatenate(told))
        if wrong.size:
            raise disagreement(place, f"part {wrong[0]}")


def _check_same(identities: list[list[object]], place: Place) -> None:
    for rank, identity in enumerate(identities):
        for name, here, first in zip(_IDENTITY, identity, identities[0], strict=True):
            if here != first:
                raise InputError(
                    f"rank {rank} reads another partition file than rank 0, which finds {name} "
                    f"{first}: give all ranks the same file",
                    file=place.file,
                    value=here,
                )


def check_sums(place: Place, sums: list[tuple[int, int]], fingerprint: str) -> None:
    """Check that all parts together have each node once, and the file's fingerprint.

    `sums` adds up to the nodes of all parts less those of the whole graph, and to the fingerprints.
    """
    total = sum(part for _, part in sums)
    if to_hex(total) != fingerprint:
        raise place.error(
            f"don't match the fingerprint {fingerprint} of the file: create it again", to_hex(total)
        )
    if sum(ids for ids, _ in sums) & MASK:
        raise place.error("have a node in common and lack another: create the file again")


def disagreement(place: Place, others: str) -> InputError:
    """Return the error of a part whose edges are not those that other parts have."""
    return place.error(
        f"disagrees with {others} about the edges between them: create the file again"
    )


def _shown(form: tuple[str, tuple[int, ...]] | None) -> str:
    if form is None:
        return "is missing"
    dtype, tail = form
    return f"has {'rows of ' if tail else ''}{'x'.join(map(str, (*tail, dtype)))}"


def _sum_ids(ids: np.ndarray, key: int) -> int:
    total = 0
    for low in range(0, len(ids), _BLOCK):
        block = ids[low : low + _BLOCK].astype(np.uint64)
        block += np.uint64(key)
        mix64(block)
        total += int(block.sum(dtype=np.uint64))
    return total & MASK


def sum_range(low: int, high: int, key: int) -> int:
    """Return the sum over the nodes low .. high - 1 that the ids of parts must add up to."""
    blocks = (np.arange(at, min(high, at + _BLOCK)) for at in range(low, high, _BLOCK))
    return sum(_sum_ids(block, key) for block in blocks)


def pair_sum(sums: np.ndarray, index: int, key: int, *, reverse: bool) -> int:
    """Return one sum over all pairs of parts (index, peer), or (peer, index) with `reverse`."""
    peers, own = np.arange(len(sums), dtype=np.uint64), np.full(len(sums), index, np.uint64)
    first, second = (peers, own) if reverse else (own, peers)
    mixed = first + np.uint64(key)
    mix64(mixed)
    mixed += second
    mix64(mixed)
    mixed += sums
    mix64(mixed)
    return int(mixed.sum(dtype=np.uint64))


def _edge_sums(lists: EdgeLists, index: int, key: int, *, reverse: bool) -> np.ndarray:
    """Return uint64 [P]: a sum over each block's edges of hashes of row, column and attributes.

    `reverse` exchanges row and column.
    """
    sums = [0] * (len(lists.edge_ptr) - 1)
    for peer in range(len(sums)):
        for rows, low, high in _row_pieces(lists, peer):
            row = np.repeat(rows, lists.counts[rows]).astype(np.uint64)
            row -= np.uint64(lists.row_ptr[peer])
            if peer == index:
                row = np.repeat(lists.rows[rows], lists.counts[rows]).astype(np.uint64)
            column = lists.columns[low:high].astype(np.uint64)
            first, second = (column, row) if reverse else (row, column)
            first <<= np.uint64(32)
            first |= second
            first += np.uint64(key)
            mix64(first)
            for values in (lists.weight, lists.relation, lists.features):
                if values is not None:
                    _add_attribute(first, values[low:high])
            sums[peer] += int(first.sum(dtype=np.uint64))
    return np.array([total & MASK for total in sums], np.uint64)


def _add_attribute(mixed: np.ndarray, values: np.ndarray) -> None:
    for column in values.reshape(len(values), int(np.prod(values.shape[1:]))).T:
        if column.dtype.kind == "f":
            column = (column + np.float32(0)).view(np.uint32)  # -0.0 is 0.0
        mixed += column.astype(np.uint64)
        mix64(mixed)


def _row_pieces(lists: EdgeLists, peer: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield entries of a block's row list with the range of their edges, `_BLOCK` at a time."""
    first, last = int(lists.row_ptr[peer]), int(lists.row_ptr[peer + 1])
    edge = int(lists.edge_ptr[peer])
    ends = np.cumsum(lists.counts[first:last], dtype=np.int64) + edge
    low = 0
    while low < len(ends):
        high = max(low + 1, int(np.searchsorted(ends, edge + _BLOCK, side="right")))
        yield np.arange(first + low, first + high), edge, int(ends[high - 1])
        low, edge = high, int(ends[high - 1])
