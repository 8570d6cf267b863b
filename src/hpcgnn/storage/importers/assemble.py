"""From a source to graph.h5: edges are spooled, numbered, split, sorted by destination, written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.display import SILENT, Display, Stage
from hpcgnn.errors import InputError
from hpcgnn.graph.draws import key_of, unit
from hpcgnn.storage.checks import Place
from hpcgnn.storage.importers.columns import write_nodes
from hpcgnn.storage.importers.ids import IdTable, distinct, given, ids_by_row, rows_of_edges
from hpcgnn.storage.importers.source import Column, EdgeChunk, Source
from hpcgnn.storage.importers.spool import Records, RowChunk, RowRules, Scratch, row_chunks
from hpcgnn.storage.schema import TEST, TRAIN, VALID, as_labels, check_labels
from hpcgnn.storage.write.graph_writer import GraphWriter

_FREE_NODES = 1_000_000  # a graph may have so many nodes without an edge
_NODES_PER_EDGE = 64
_TRUSTED = 100  # times as many where the user has named the number
_MAX_RELATIONS = 1 << 16  # or as many as there are edges


@dataclass(frozen=True)
class LinkSplit:
    """Which split an edge is of follows from its two nodes and a seed.

    So both directions of an undirected edge, and parallel edges, are of one split, and nothing has
    to be kept in memory; the shares are met as nearly as chance does. What is left over, and
    self-loops, are for messages alone.

    Attributes:
        shares: of the edges, for train, valid and test.
    """

    shares: tuple[float, float, float]
    seed: int

    @staticmethod
    def of(text: str, seed: int) -> LinkSplit:
        """From `0.8,0.1,0.1`.

        Raises:
            InputError: it is no three shares of at least 0, together at most 1.
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
        """int8 per edge of some consecutive nodes' lists.

        Args:
            counts: edges into each of the nodes `first` and on.
            sources: where they come from.
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
    """What becomes of the edges and features; None leaves the choice to the format.

    Attributes:
        symmetrise: add the missing reverses and remove duplicates.
        self_loops: "keep", "remove", or "add" one where a node has none.
        deduplicate: one edge per source, destination and relation.
        duplicate_weights: "max" or "sum" of the weights (and features) of duplicates.
        reverse: turn every edge round.
        inverse_relations: add the reverse of every edge under relation r + R.
        row_normalise: divide each row of the features by the sum of its absolute values.
        trust_num_nodes: the user has named the number of nodes.
        link_split: makes a split of the edges.
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
    """Write the graph; `limit` is the bytes of edges that are sorted in memory at a time.

    Raises:
        InputError: the source is not a graph; nothing is left under the name `out`.
        OutputError: it can't be written.
    """
    if source.num_nodes is not None and source.num_edges is not None:
        _check_number(source.num_nodes, source.num_edges, source, treatment)
    with Scratch(out, limit) as scratch:
        if source.begin is not None:
            source.begin(scratch)
        with display.stage("read the edges", source.num_edges, "edges") as stage:
            edges, relations = _spool(source, scratch, treatment, stage)
        if treatment.link_split is not None and "split" in (edges.dtype.names or ()):
            raise InputError("has a split of the edges: leave out --link-split", file=source.file)
        with display.stage("number the nodes"):
            trusted = treatment.trust_num_nodes
            num_nodes, table, edges = _number(source, edges, scratch, trusted=trusted)
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
            first, written, arranged = 0, 0, edges.count
            with display.stage("sort and write the edges", num_nodes, "nodes") as stage:
                for chunk in row_chunks(edges, scratch, num_nodes, rules):
                    _write_rows(writer, chunk, treatment.link_split, first)
                    first += len(chunk.counts)
                    written += len(chunk.indices)
                    stage.advance(len(chunk.counts))
            if rules.deduplicate and written < arranged and rules.self_loops != "add":
                source.notes.append(_merged(rules))
            texts = source.names or source.nodes.names
            if texts is not None:
                for lengths, data in texts.names():
                    writer.append_original_names(lengths, data)
            else:
                for ids in _original_ids(source, table, scratch):
                    writer.append_original_ids(ids)
            if source.encoding is not None:
                writer.write_encoding(source.encoding)


def _merged(rules: RowRules) -> str:
    both = ", or both ways," if rules.symmetrise else ""
    return (
        f"edges that are listed more than once{both} are one each, with the {rules.combine} of "
        "their weights where they have some (--duplicate-weights)"
    )


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


_HELD = 2  # times the limit: nothing is sorted while edges are read


def _spool(
    source: Source, scratch: Scratch, treatment: Treatment, stage: Stage
) -> tuple[Records, int]:
    """All edges, checked, and the number of relations."""
    records: Records | None = None
    relations = source.num_relations or 0
    lowest = np.iinfo(np.int64).max
    for edges in source.edges:
        if edges.labels is not None:
            place = Place(source.file, edges.place(0))
            edges.labels = as_labels(edges.labels, place)
            check_labels(edges.labels, place)
        dtype = _dtype(edges, source)
        if records is None:
            records = scratch.records(dtype, _HELD * scratch.limit)
        elif records.dtype != dtype:
            raise InputError("all edges must have the same columns", file=source.file)
        out = np.zeros(edges.source.shape[0], dtype)
        _copy_ends(out, edges, source, treatment.reverse)
        if out.shape[0]:
            lowest = min(lowest, int(out["source"].min()), int(out["destination"].min()))
        if edges.weight is not None:
            out["weight"] = _finite(edges.weight, edges, source, "weight")
        if edges.features is not None:
            out["features"] = _finite(edges.features, edges, source, "edge features")
        if edges.labels is not None:
            out["labels"] = edges.labels
        if edges.split is not None:
            _check_range(edges.split, 4, edges, source, "the split of the edges")
            out["split"] = edges.split
        if edges.relation is not None:
            top = 1 << 30 if source.num_relations is None else source.num_relations
            _check_range(edges.relation, top, edges, source, "relation")
            out["relation"] = edges.relation
            if source.num_relations is None:
                relations = max(relations, 1 + int(edges.relation.max(initial=-1)))
        records.append(out)
        stage.advance(len(out))
    if records is None:
        records = scratch.records(_dtype(None, source))
    if "relation" not in (records.dtype.names or ()):
        relations = 0
    if relations > max(_MAX_RELATIONS, records.count):
        raise InputError(
            f"relations are numbered from 0, and there are only {records.count} edges",
            file=source.file,
            value=relations - 1,
        )
    if source.rows_as_given and source.num_nodes is not None and records.count and lowest > 0:
        source.notes.append(
            f"ids count from 0, and no edge touches a node below {lowest}: is that meant?"
        )
    return records, relations


def _dtype(edges: EdgeChunk | None, source: Source) -> np.dtype:
    """Of the records of such edges: their ends take 4 bytes each where that is known to do."""
    narrow = source.num_nodes is not None and source.num_nodes <= 1 << 31
    end = np.int32 if narrow else np.int64
    fields: list[tuple] = [("source", end), ("destination", end)]
    if edges is not None and edges.weight is not None:
        fields.append(("weight", np.float32))
    if edges is not None and edges.relation is not None:
        fields.append(("relation", np.int32))
    if edges is not None and edges.features is not None:
        fields.append(("features", np.float32, (edges.features.shape[1],)))
    if edges is not None and edges.labels is not None:
        fields.append(("labels", edges.labels.dtype, edges.labels.shape[1:]))
    if edges is not None and edges.split is not None:
        fields.append(("split", np.int8))
    return np.dtype(fields)


def _copy_ends(out: np.ndarray, edges: EdgeChunk, source: Source, reverse: bool) -> None:
    top = np.iinfo(np.int64).max if source.num_nodes is None else source.num_nodes
    for name in ("source", "destination"):
        values = getattr(edges, name)
        _check_range(values, top, edges, source, name)
        turned = {"source": "destination", "destination": "source"}[name]
        out[turned if reverse else name] = values


def _check_range(values: np.ndarray, top: int, edges: EdgeChunk, source: Source, what: str) -> None:
    if values.size == 0 or (values.min() >= 0 and values.max() < top):
        return
    k = int(np.argmax((values < 0) | (values >= top)))
    message = f"{what} must not be negative" if values[k] < 0 else f"{what} must be below {top}"
    raise InputError(message, file=source.file, dataset=edges.place(k), value=int(values[k]))


def _finite(values: np.ndarray, edges: EdgeChunk, source: Source, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
    bad = ~np.isfinite(out)
    if bad.any():
        at = np.argwhere(bad)[0]
        raise InputError(
            f"{what} must be a finite float32",
            file=source.file,
            dataset=edges.place(int(at[0])),
            value=float(values[tuple(at)]),
        )
    return out


def _number(
    source: Source, edges: Records, scratch: Scratch, *, trusted: bool
) -> tuple[int, IdTable | None, Records]:
    """Number of nodes, the table of their ids where they are not rows, the edges between rows."""
    if edges.count == 0 and not (source.counted or trusted):
        raise InputError("holds no edges: if this is meant, say --num-nodes N", file=source.file)
    if source.num_nodes is not None:
        return source.num_nodes, None, edges
    named = source.nodes.ids
    table = distinct(edges, scratch) if named is None else given(named, scratch)
    if named is not None or not table.consecutive:
        column = named or Column(source.file, "ids", iter(()))
        edges = rows_of_edges(edges, table, scratch, column)
    return table.count, None if table.consecutive else table, edges


def _check_number(num_nodes: int, num_edges: int, source: Source, treatment: Treatment) -> None:
    """Refuse a number of nodes that nobody can have meant."""
    if num_nodes < 1:
        raise InputError("a graph needs at least one node", file=source.file, value=num_nodes)
    usual = _FREE_NODES + _NODES_PER_EDGE * num_edges
    if num_nodes > _TRUSTED * usual:
        raise InputError(
            f"announces {num_nodes} nodes but has {num_edges} edges, which go with"
            f" {_TRUSTED * usual} nodes at most",
            file=source.file,
        )
    announced = source.nodes.labels is None and source.nodes.features is None
    if announced and num_nodes > usual and not treatment.trust_num_nodes:
        raise InputError(
            f"announces {num_nodes} nodes but has {num_edges} edges: if this is meant,"
            f" say --num-nodes {num_nodes}",
            file=source.file,
        )


def _check_space(num_nodes: int, num_edges: int, source: Source, out: Path) -> None:
    needed = 8 * (num_nodes + 1) + 4 * num_edges
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise InputError(
            f"{num_nodes} nodes and {num_edges} edges need {needed} bytes, {out.parent} has {free}",
            file=source.file,
        )


def _rules(source: Source, treatment: Treatment, relations: int) -> RowRules:
    symmetrise = source.symmetrise if treatment.symmetrise is None else treatment.symmetrise
    loops = source.self_loops if treatment.self_loops is None else treatment.self_loops
    if treatment.inverse_relations and not relations:
        raise InputError("has no relations: leave out --inverse-relations", file=source.file)
    if treatment.inverse_relations and symmetrise:
        raise InputError(
            "edges are either symmetrised or given inverse relations: choose one", file=source.file
        )
    if relations and loops == "add":
        raise InputError(
            "a self-loop would need a relation of its own: leave out --self-loops add",
            file=source.file,
        )
    return RowRules(
        symmetrise=symmetrise,
        self_loops=loops,
        deduplicate=symmetrise or treatment.deduplicate,
        combine=treatment.duplicate_weights,
        num_relations=relations * (2 if treatment.inverse_relations else 1),
    )


def _arrange(edges: Records, scratch: Scratch, rules: RowRules, relations: int) -> Records:
    """The edges with their reverses and without self-loops, as asked for."""
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
