"""From a source to graph.h5: spooling, numbering, splitting, sorting and writing the edges."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.display import SILENT, Display, Stage
from hpcgnn.errors import InputError, counted, human
from hpcgnn.graph.draws import key_of, unit
from hpcgnn.storage.importers.ahead import ahead
from hpcgnn.storage.importers.columns import write_nodes
from hpcgnn.storage.importers.earlier_rows import earlier_rows
from hpcgnn.storage.importers.edge_records import Spooled, spool_edges
from hpcgnn.storage.importers.ids import (
    IdTable,
    distinct,
    given,
    ids_by_row,
    rows_of_edges,
)
from hpcgnn.storage.importers.names import NameStore
from hpcgnn.storage.importers.row_lists import RowChunk, RowRules, row_chunks
from hpcgnn.storage.importers.source import Column, Source
from hpcgnn.storage.importers.spool import Records, Scratch
from hpcgnn.storage.schema import EARLIER_ROW, TEST, TRAIN, VALID
from hpcgnn.storage.write.graph_writer import GraphWriter

_AHEAD = 4  # lists of half a megabyte
_ALL_LOOPS = "every edge is a self-loop: no node receives a message from another"
_FREE_NODES = 1_000_000  # a graph may have so many nodes without an edge
_NODES_PER_EDGE = 64
_TRUSTED = 100  # factor by which both may be exceeded if the user has given the number


@dataclass(frozen=True)
class LinkSplit:
    """A split of the edges in which an edge's set follows from its two nodes and a seed.

    Both directions of an undirected edge, and parallel edges, therefore fall into the same set, and
    nothing has to be kept in memory. The shares are met on average, not exactly. The remaining
    edges, and self-loops, are used for messages only.

    Attributes:
        shares: the fractions of the edges for train, valid and test.
        seed: the seed of the random draw.
    """

    shares: tuple[float, float, float]
    seed: int

    @staticmethod
    def of(text: str, seed: int) -> LinkSplit:
        """Return the split that a text such as `0.8,0.1,0.1` describes.

        Raises:
            InputError: the text is not three shares of at least 0, with a sum of at most 1.
        """
        try:
            shares = tuple(float(part) for part in text.split(","))
        except ValueError:
            shares = ()
        good = len(shares) == 3 and all(math.isfinite(s) and s >= 0 for s in shares)
        if not good or sum(shares) > 1 + 1e-9:
            raise InputError(
                "--link-split takes three shares for train, valid and test, together at most 1, "
                "such as 0.8,0.1,0.1",
                value=text,
            )
        return LinkSplit((shares[0], shares[1], shares[2]), seed)

    def codes(self, counts: np.ndarray, sources: np.ndarray, first: int) -> np.ndarray:
        """Return an int8 split code for each edge into some consecutive nodes.

        Args:
            counts: the number of edges into each of the nodes `first`, `first + 1`, ...
            sources: the source nodes of these edges.
        """
        targets = np.repeat(np.arange(first, first + len(counts), dtype=np.int64), counts)
        low, high = np.minimum(sources, targets), np.maximum(sources, targets)
        place = np.searchsorted(
            np.cumsum(self.shares), unit(key_of(self.seed), low, high), side="right"
        )
        codes = np.array([TRAIN, VALID, TEST, 0], np.int8)[place]
        codes[low == high] = 0
        return codes


@dataclass(frozen=True)
class Treatment:
    """How edges and features are transformed; None leaves the choice to the format.

    Attributes:
        symmetrise: add the missing reverses and remove duplicates.
        self_loops: "keep", "remove", or "add" one to each node without one.
        deduplicate: keep one edge per source, destination and relation.
        duplicate_weights: "max" or "sum", how weights (and features) of duplicates are combined.
        reverse: reverse every edge.
        inverse_relations: add the reverse of every edge under relation r + R.
        row_normalise: divide each row of the features by the sum of its absolute values.
        trust_num_nodes: the user has given the number of nodes.
        link_split: how to split the edges, if at all.
        compress: gzip the datasets.
    """

    symmetrise: bool | None = None
    self_loops: str | None = None
    deduplicate: bool = False
    duplicate_weights: str = "max"
    reverse: bool = False
    inverse_relations: bool = False
    row_normalise: bool = False
    trust_num_nodes: bool = False
    link_split: LinkSplit | None = None
    compress: bool = False


def assemble(
    source: Source,
    out: Path,
    treatment: Treatment,
    *,
    limit: int,
    config: dict,
    display: Display = SILENT,
) -> None:
    """Write graph.h5; at most `limit` bytes of edges are sorted in memory at a time.

    Raises:
        InputError: the source is not a valid graph; nothing is left under the name `out`.
        OutputError: the file can't be written.
    """
    if source.num_nodes is not None and source.num_edges is not None:
        _check_number(source.num_nodes, source.num_edges, source, treatment)
    with Scratch(out, limit) as scratch:
        if source.begin is not None:
            source.begin(scratch)
        with display.stage("read the edges", source.num_edges, "edges") as stage:
            spooled = spool_edges(source, scratch, reverse=treatment.reverse, stage=stage)
        edges, relations = spooled.records, spooled.relations
        if treatment.link_split is not None and "split" in (edges.dtype.names or ()):
            raise InputError("has a split of the edges: leave out --link-split", file=source.file)
        with display.stage("number the nodes"):
            trusted = treatment.trust_num_nodes
            num_nodes, table, edges = _number(source, spooled, scratch, trusted=trusted)
        _add_earlier_rows(source, table, num_nodes, scratch)
        _check_number(num_nodes, edges.count, source, treatment)
        _check_space(num_nodes, edges.count, source, out)
        rules = _rules(source, treatment, relations)
        with display.stage("arrange the edges"):
            edges = _arrange(edges, scratch, rules, relations)
        with GraphWriter(
            out,
            num_nodes=num_nodes,
            compress=treatment.compress,
            config=config | source.type_names,
            num_classes=source.nodes.num_classes,
            num_relations=rules.num_relations or None,
            source=source.file,
        ) as writer:
            with display.stage("write the nodes"):
                normalise = treatment.row_normalise
                write_nodes(writer, source.nodes, num_nodes, scratch, normalise=normalise)
            arranged, split = edges.count, treatment.link_split
            joined = _Joined.of(source, num_nodes, limit, rules)
            with display.stage("sort and write the edges", num_nodes, "nodes") as stage:
                chunks = row_chunks(edges, scratch, num_nodes, rules)
                written, joins = _write_lists(writer, chunks, split, joined, stage)
            if rules.deduplicate and written < arranged and rules.self_loops != "add":
                source.notes.append(_merged(rules))
            if written and not joins:
                source.notes.append(_ALL_LOOPS)
            source.notes += joined.notes()
            _write_ids(writer, source, table, scratch)
            if source.encoding is not None:
                writer.write_encoding(source.encoding)


def _add_earlier_rows(
    source: Source, table: IdTable | None, num_nodes: int, scratch: Scratch
) -> None:
    if source.earlier is None:
        return
    if EARLIER_ROW in source.nodes.arrays:
        raise InputError(f"--like stores an array {EARLIER_ROW}: name yours otherwise")
    store = source.names if isinstance(source.names, NameStore) else None
    rows = earlier_rows(source.earlier, store, table, num_nodes, scratch)
    source.nodes.arrays[EARLIER_ROW] = Column(source.file, EARLIER_ROW, rows)


def _write_lists(
    writer: GraphWriter,
    chunks: Iterator[RowChunk],
    split: LinkSplit | None,
    joined: _Joined,
    stage: Stage,
) -> tuple[int, bool]:
    """Write all lists; return the number of edges, and whether any is not a self-loop."""
    first, written, joins = 0, 0, False
    with closing(ahead(chunks, _AHEAD)) as lists:
        for chunk in lists:
            _write_rows(writer, chunk, split, first)
            joins = joins or not _only_loops(chunk, first)
            joined.add(chunk, first)
            first += len(chunk.counts)
            written += len(chunk.indices)
            stage.advance(len(chunk.counts))
    return written, joins


def _write_ids(
    writer: GraphWriter, source: Source, table: IdTable | None, scratch: Scratch
) -> None:
    texts = source.names or source.nodes.names
    if texts is not None:
        for lengths, data in texts.names():
            writer.append_original_names(lengths, data)
        return
    for ids in _original_ids(source, table, scratch):
        writer.append_original_ids(ids)


def _merged(rules: RowRules) -> str:
    both = ", or both ways," if rules.symmetrise else ""
    return (
        f"edges that are listed more than once{both} are merged into one, with the {rules.combine} "
        "of their weights if they have weights (--duplicate-weights)"
    )


class _Joined:
    """Which nodes of a table have edges; many without any may mean that the ids don't match.

    Args:
        has_edges_N: bool; empty for sources that are not tables, for too many nodes, and where all
            nodes are ends of edges.
    """

    def __init__(self, has_edges_N: np.ndarray) -> None:
        self._has_edges_N = has_edges_N

    @classmethod
    def of(cls, source: Source, num_nodes: int, limit: int, rules: RowRules) -> _Joined:
        listed = source.lists_nodes or source.num_nodes is not None
        alone = listed or rules.self_loops == "remove"
        known = source.encoding is not None and alone and num_nodes <= limit // 8
        return cls(np.zeros(num_nodes if known else 0, bool))

    def add(self, chunk: RowChunk, first: int) -> None:
        if self._has_edges_N.size:
            self._has_edges_N[first : first + len(chunk.counts)] |= chunk.counts > 0
            self._has_edges_N[chunk.indices] = True

    def notes(self) -> list[str]:
        total = self._has_edges_N.size
        alone = total - int(self._has_edges_N.sum())
        have = "has" if alone == 1 else "have"
        return [f"{alone:,} of {counted(total, 'node')} {have} no edges"] if alone else []


def _only_loops(chunk: RowChunk, first: int) -> bool:
    rows = np.arange(first, first + len(chunk.counts))
    return bool((chunk.indices == np.repeat(rows, chunk.counts)).all())


def _write_rows(
    writer: GraphWriter, chunk: RowChunk, link_split: LinkSplit | None, first: int
) -> None:
    edge_split = chunk.edge_split
    if link_split is not None:
        edge_split = link_split.codes(chunk.counts, chunk.indices, first)
    writer.append_rows(
        chunk.counts,
        chunk.indices,
        chunk.weight,
        chunk.relation,
        chunk.edge_features,
        chunk.edge_labels,
        edge_split,
    )


def _number(
    source: Source, spooled: Spooled, scratch: Scratch, *, trusted: bool
) -> tuple[int, IdTable | None, Records]:
    """Return the number of nodes, the table of ids unless ids are rows, and edges between rows."""
    edges = spooled.records
    if edges.count == 0 and not (source.counted or trusted):
        raise InputError("holds no edges: if this is intended, add --num-nodes N", file=source.file)
    if source.num_nodes is not None:
        return source.num_nodes, None, edges
    named = source.nodes.ids
    table = distinct(edges, spooled.largest, scratch) if named is None else given(named, scratch)
    if named is not None or not table.consecutive:
        column = named or Column(source.file, "ids", iter(()))
        edges = rows_of_edges(edges, table, scratch, column)
    return table.count, None if table.consecutive else table, edges


def _check_number(num_nodes: int, num_edges: int, source: Source, treatment: Treatment) -> None:
    """Refuse a number of nodes that is implausible for the number of edges."""
    if num_nodes < 1:
        raise InputError("a graph needs at least one node", file=source.file, value=num_nodes)
    usual = _FREE_NODES + _NODES_PER_EDGE * num_edges
    if num_nodes > _TRUSTED * usual:
        raise InputError(
            f"announces {num_nodes} nodes but has {num_edges} edges, which is plausible for at "
            f"most {_TRUSTED * usual} nodes",
            file=source.file,
        )
    announced = source.nodes.labels is None and source.nodes.features is None
    if announced and num_nodes > usual and not treatment.trust_num_nodes:
        raise InputError(
            f"announces {num_nodes} nodes but has {num_edges} edges: if this is intended, add "
            f"--num-nodes {num_nodes}",
            file=source.file,
        )


def _check_space(num_nodes: int, num_edges: int, source: Source, out: Path) -> None:
    needed = 8 * (num_nodes + 1) + 4 * num_edges
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise InputError(
            f"{num_nodes} nodes and {num_edges} edges need {human(needed)}, and {human(free)} are "
            f"free in {out.parent}",
            file=source.file,
        )


def _rules(source: Source, treatment: Treatment, relations: int) -> RowRules:
    symmetrise = source.symmetrise if treatment.symmetrise is None else treatment.symmetrise
    self_loops = source.self_loops if treatment.self_loops is None else treatment.self_loops
    if treatment.inverse_relations and not relations:
        raise InputError("has no relations: leave out --inverse-relations", file=source.file)
    if treatment.inverse_relations and symmetrise:
        raise InputError(
            "edges are either symmetrised or given inverse relations: choose one", file=source.file
        )
    if relations and self_loops == "add":
        raise InputError(
            "a self-loop would need a relation of its own: leave out --self-loops add",
            file=source.file,
        )
    return RowRules(
        symmetrise=symmetrise,
        self_loops=self_loops,
        deduplicate=symmetrise or treatment.deduplicate,
        combine=treatment.duplicate_weights,
        num_relations=relations * (2 if treatment.inverse_relations else 1),
    )


def _arrange(edges: Records, scratch: Scratch, rules: RowRules, relations: int) -> Records:
    """Return the edges with reverses added and self-loops removed, as the rules say."""
    inverse = rules.num_relations > relations
    if not (rules.symmetrise or inverse or rules.self_loops == "remove"):
        return edges
    out = scratch.records(edges.dtype)
    for chunk in edges.chunks():
        if rules.self_loops == "remove":
            chunk = chunk[chunk["source"] != chunk["destination"]]
        out.append(chunk)
        if rules.symmetrise or inverse:
            turned = chunk.copy()
            turned["source"], turned["destination"] = chunk["destination"], chunk["source"]
            if inverse:
                turned["relation"] += relations
            else:
                turned = turned[turned["source"] != turned["destination"]]
            out.append(turned)
    edges.drop()
    return out


def _original_ids(source: Source, table: IdTable | None, scratch: Scratch) -> Iterator[np.ndarray]:
    if table is not None:
        yield from ids_by_row(table, scratch)
    elif source.nodes.ids is not None and source.num_nodes is not None:
        yield from ids_by_row(given(source.nodes.ids, scratch), scratch)
