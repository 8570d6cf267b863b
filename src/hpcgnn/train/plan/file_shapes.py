"""The shape of the largest part, from the header of a graph or partition file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError, counted
from hpcgnn.models.demands import (
    Content,
    Facts,
    check_host_features,
    check_ignored,
    ignored_by,
)
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage import checks
from hpcgnn.storage.read.graph_file import read_counts
from hpcgnn.storage.read.nodes import read_pointers
from hpcgnn.storage.read.parts import part_name
from hpcgnn.storage.read.reader import Reader, format_of
from hpcgnn.storage.schema import GRAPH, MAX_COUNT, MAX_WIDTH, PARTITION, TRAIN, TYPES, Counts
from hpcgnn.tasks.settings import check_stored
from hpcgnn.train.config import Config
from hpcgnn.train.open import check_training
from hpcgnn.train.plan.estimate import Shape, estimate
from hpcgnn.train.plan.ranks import MOST_RANKS
from hpcgnn.train.plan.shapes import IMBALANCE, largest_of

_SLAB = 1 << 22  # rows read at a time
_SAMPLED_PARTS = 4
_CANDIDATES = 16  # parts with most nodes, edges or halo rows to search for the one that needs most
ShapeAt = Callable[[int], Shape]


def shapes_of_file(
    path: Path, config: Config, halo_fraction: float | None = None
) -> tuple[ShapeAt, int | None, Counts]:
    """Return the largest part's shape by number of ranks, the file's parts, the graph's counts.

    At the number of parts of a partition file, the shape is counted, not estimated.

    Args:
        halo_fraction: see `largest_of`.

    Raises:
        InputError: the file is neither a graph nor a partition, its header is damaged, or the graph
            can't be trained on with these settings.
    """
    with _opened(path) as reader:
        kind = reader.text("format")
        counts = read_counts(reader)
        symmetric = True
        stored = None
        if kind == PARTITION:
            symmetric = bool(reader.integer("symmetric", 0, 1))
        prefixes = _prefixes(reader)
        _check(config, counts, reader, prefixes)
        if any(reader.is_group(f"{prefix}nodes/features") for prefix in prefixes):
            sizes = {entry["name"]: entry["shape"][0] for entry in reader.walk() if entry["shape"]}
            stored = sum(sizes.get(f"{prefix}nodes/features/indices", 0) for prefix in prefixes)
        weighted = reader.has(f"{prefixes[0]}{'in' if prefixes[0] else 'edges'}/weight")
        whole = Shape(
            ranks=1,
            nodes=counts.num_nodes,
            edges=counts.num_edges,
            features=counts.num_features,
            outputs=config.task.pair_width
            if config.task.on_pairs
            else _outputs(reader, counts, prefixes[0]) or 1,
            halo=0,
            volume=0,
            stored=stored,
            edge_bytes=_edge_bytes(counts, weighted),
            relations=counts.num_relations,
            symmetric=symmetric,
            labelled=_labelled(reader, counts, prefixes, config),
            pairs_per_edge=_pairs_per_edge(reader, counts, prefixes),
        )
        if kind == GRAPH:
            return partial(largest_of, whole, halo_fraction=halo_fraction), None, counts
        parts = reader.integer("num_parts", 1, MOST_RANKS)
        counted = _largest(reader, largest_of(whole, parts), parts, config)

    def shape_at(ranks: int) -> Shape:
        return counted if ranks == parts else largest_of(whole, ranks, halo_fraction)

    return shape_at, parts, counts


def _opened(path: Path) -> Reader:
    """Return a reader of a graph or partition file; raise InputError for other files."""
    kind = format_of(path)
    reader = Reader(path, kind if kind in (GRAPH, PARTITION) else None)
    if kind not in (GRAPH, PARTITION):
        reader.close()
        raise InputError("is neither a graph nor a partition", file=path, value=kind)
    return reader


def _prefixes(reader: Reader) -> list[str]:
    """Return the prefix of each part's dataset names; a graph is a single part."""
    if reader.text("format") == GRAPH:
        return [""]
    parts = reader.integer("num_parts", 1, MOST_RANKS)
    names = [part_name(index) for index in range(parts)]
    if [f"parts/{name}" for name in reader.names("parts")] != names:
        raise reader.place("parts").error(f"must hold the parts 0 .. {parts - 1}")
    return [f"{name}/" for name in names]


def _outputs(reader: Reader, counts: Counts, prefix: str) -> int:
    """Return the number of classes, of simultaneous labels, or of values to predict per node."""
    if counts.num_classes or not reader.has(f"{prefix}nodes/labels"):
        return counts.num_classes
    return reader.rows(f"{prefix}nodes/labels", ("float32",), None).width


def _labelled(reader: Reader, counts: Counts, prefixes: list[str], config: Config) -> float | None:
    """Return the share of nodes trained on; None for tasks on pairs or without stored splits."""
    names = [f"{prefix}nodes/split" for prefix in prefixes]
    if config.task.on_pairs or not counts.num_splits or not all(map(reader.has, names)):
        return None
    found = 0
    for name in names:
        column = reader.column(name, ("int8",), (None, counts.num_splits))
        for low in range(0, len(column), _SLAB):
            rows = column.read(low, min(low + _SLAB, len(column)))
            found += int((rows[:, config.training.split] == TRAIN).sum())
    return found / max(counts.num_nodes, 1) or None


def _pairs_per_edge(reader: Reader, counts: Counts, prefixes: list[str]) -> float | None:
    """Return pairs (relation, row) per edge, from the first edges of some parts; None without."""
    if not counts.num_relations:
        return None
    pairs = edges = 0
    for prefix in prefixes[:: -(-len(prefixes) // _SAMPLED_PARTS)]:
        if prefix:
            column = reader.column(f"{prefix}in/counts", ("int32",), (None,))
            sizes = column.read(0, min(len(column), _SLAB))
            checks.in_range(sizes, 0, MAX_WIDTH, column.place())
        else:
            column = reader.column("edges/indptr", ("int64",), (counts.num_nodes + 1,))
            some = min(counts.num_nodes, _SLAB)
            sizes = np.diff(read_pointers(column, 0, some, counts.num_edges))
        column = reader.column(
            f"{prefix}{'in' if prefix else 'edges'}/relation", ("int32",), (None,)
        )
        ends = np.cumsum(sizes, dtype=np.int64)
        rows = int(np.searchsorted(ends, min(len(column), _SLAB), side="right"))
        relation = column.read(0, int(ends[rows - 1]) if rows else 0)
        row = np.repeat(np.arange(rows), sizes[:rows])
        pairs += len(sorted_unique(row * counts.num_relations + relation))
        edges += len(relation)
    return pairs / edges if edges else None


def _check(config: Config, counts: Counts, reader: Reader, prefixes: list[str]) -> None:
    """Refuse what `train` would."""
    prefix = prefixes[0]
    ignored = set() if config.model.own else ignored_by(config.model)
    read = "features" not in ignored
    kinds = {
        "sparse": read and reader.is_group(f"{prefix}nodes/features"),
        "dense": read and counts.num_features > 0,
        "typed": reader.is_group(f"{prefix}nodes/typed_features"),
    }
    facts = Facts(
        features=next((kind for kind in ("typed", "sparse", "dense") if kinds[kind]), "none"),
        labels=reader.has(f"{prefix}nodes/labels") and counts.num_splits > 0,
        multilabel=bool(counts.multilabel),
        num_outputs=counts.num_classes,
        num_relations=counts.num_relations,
        edge_width=counts.edge_width,
    )
    try:
        if not config.model.own:
            check_ignored(config.model, typed_features=kinds["typed"])
        _check_stored(config, reader, prefixes)
        check_training(config, facts)
    except InputError as error:
        raise InputError(str(error), file=reader.path) from None
    if config.training.split >= max(counts.num_splits, 1):
        raise InputError(
            f"has {counted(counts.num_splits, 'split')}, none with this number",
            file=reader.path,
            value=config.training.split,
        )
    on_host = config.device.kind == "cuda" and config.device.features_on == "host"
    if on_host and facts.features == "dense":
        check_host_features(config.model, adversarial=config.training.adversarial_steps > 0)


def _check_stored(config: Config, reader: Reader, prefixes: list[str]) -> None:
    edges = "in" if prefixes[0] else "edges"
    check_stored(
        config.task,
        edge_labels=any(reader.has(f"{prefix}{edges}/labels") for prefix in prefixes),
        edge_split=any(reader.has(f"{prefix}{edges}/split") for prefix in prefixes),
        arrays=reader.names(f"{prefixes[0]}nodes/arrays"),
    )


def content_of_file(path: Path) -> Content:
    """Return what the file holds, from its header and names."""
    with _opened(path) as reader:
        counts = read_counts(reader)
        parts = _prefixes(reader)
        edges = "in" if parts[0] else "edges"
        return Content(
            weights=any(reader.has(f"{part}{edges}/weight") for part in parts),
            edge_width=counts.edge_width,
            relations=counts.num_relations > 0,
            types=counts.num_types > 0,
            features=counts.num_features > 0,
            typed_features=any(reader.is_group(f"{part}nodes/typed_features") for part in parts),
        )


def arrays_of_file(path: Path) -> dict[str, np.ndarray]:
    """Return the named arrays of the nodes in the file, without their rows."""
    with _opened(path) as reader:
        group = f"{_prefixes(reader)[0]}nodes/arrays"
        columns = {
            name: reader.rows(f"{group}/{name}", TYPES, None) for name in reader.names(group)
        }
        return {name: np.empty((0, *c.shape[1:]), c.dtype) for name, c in columns.items()}


def _largest(reader: Reader, even: Shape, parts: int, config: Config) -> Shape:
    """Return the part that needs most memory, with the busiest parts, which others wait for."""
    column = reader.column("exchange/sizes", ("int64",), (parts, 2))
    sizes = column.read()
    checks.in_range(sizes, 0, MAX_COUNT, column.place())
    totals = sizes.sum(axis=0).tolist()
    if totals != [even.whole_nodes, even.whole_edges]:
        raise column.place().error("must add up to num_nodes and num_edges", totals)
    column = reader.column("exchange/in", ("int32",), (parts, parts))
    sends = column.read().astype(np.int64)
    checks.in_range(sends, 0, MAX_WIDTH, column.place())
    halo = np.maximum(sends.sum(axis=0), sends.sum(axis=1))
    nodes, edges = sizes[:, 0], sizes[:, 1]

    def part(number: int) -> Shape:
        stored = even.stored
        if stored is not None and parts > 1:
            share = int(nodes[number]) / max(1, int(nodes.sum()))
            stored = round(stored * parts / IMBALANCE * share)
        return replace(
            even,
            nodes=int(nodes[number]),
            edges=int(edges[number]),
            halo=int(halo[number]),
            block_edges=_block_edges(reader, number, parts, int(edges[number])),
            volume=int(sends.sum()),
            stored=stored,
        )

    if config.model.own:  # of unknown memory, whose parts compare like those of another model
        config = config.changed(model="gcn", model_args="")
    first = {int(k) for order in (nodes, edges, halo) for k in np.argsort(-order)[:_CANDIDATES]}
    largest = max(map(part, sorted(first)), key=lambda shape: estimate(shape, config).peak)
    most = {int(np.argmax(counts)) for counts in (nodes, edges, halo)}
    return replace(largest, busiest=tuple(map(part, sorted(most))))


def _block_edges(reader: Reader, part: int, parts: int, edges: int) -> int:
    """Return the number of edges in the part's largest block."""
    column = reader.column(f"{part_name(part)}/in/edge_ptr", ("int64",), (parts + 1,))
    return int(np.diff(read_pointers(column, 0, parts, edges)).max())


def _edge_bytes(counts: Counts, weighted: bool) -> int:
    return 4 * (1 + weighted + (counts.num_relations > 0) + counts.edge_width)
