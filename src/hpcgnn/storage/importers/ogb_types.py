"""OGB's raw folders of several types of nodes, such as ogbn-mag's.

raw/num-node-dict.csv.gz          a line of types, a line of their numbers of nodes
raw/triplet-type-list.csv.gz      source type, relation, destination type, a line for each
raw/relations/A___R___B/          edge.csv.gz, num-edge-list.csv.gz, maybe edge-feat.csv.gz
raw/node-feat/TYPE/node-feat.csv.gz     of the types that have features
raw/nodetype-has-label.csv.gz, raw/node-label/TYPE/node-label.csv.gz
split/SCHEME/nodetype-has-split.csv.gz, split/SCHEME/TYPE/train.csv.gz, valid.csv.gz, test.csv.gz
"""

from __future__ import annotations

import re
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.ogb_files import (
    SETS,
    counted,
    edge_pairs,
    if_there,
    integers,
    single_count,
    split_scheme,
)
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.pairs import edges_from
from hpcgnn.storage.importers.source import Column, ImportOptions, NodeSplit, Source
from hpcgnn.storage.importers.typed import EdgeType, TypedEdges, TypedNodes, join

LIST = "triplet-type-list.csv.gz"
_MOST_BYTES = 1 << 22
_NAME = re.compile(r"[^/\\\0]+")
_INVERSE = (
    "edges lead one way, as OGB's loader gives them: --inverse-relations adds the reverse of each"
    " relation, without which a type of nodes that only sends gets no messages"
)


def read_ogb_types(path: Path, options: ImportOptions) -> Source:
    """Types in the order of their names, as OGB's loader has them.

    Raises:
        InputError: a file is missing or damaged, or several types have labels.
    """
    raw = path / "raw"
    counts = _counts(raw / "num-node-dict.csv.gz")
    nodes = {}
    labelled = _chosen(raw / "nodetype-has-label.csv.gz", counts)
    for name in sorted(counts):
        nodes[name] = TypedNodes(
            counts[name], features=if_there(raw / "node-feat" / name / "node-feat.csv.gz")
        )
        if name in labelled:
            labels = raw / "node-label" / name / "node-label.csv.gz"
            nodes[name].labels = Column(labels, "values", _need(labels).chunks)
    scheme = split_scheme(path / "split", options)
    for name in _chosen(scheme / "nodetype-has-split.csv.gz", counts) if scheme else []:
        folder = scheme / name  # type: ignore[operator]
        parts = {part: integers(folder / f"{part}.csv.gz", options.limit) for part in SETS}
        nodes[name].split = NodeSplit(folder, parts)
    edges = [_edges(raw / "relations", name) for name in sorted(_triples(raw / LIST))]
    notes = [_INVERSE, *_left_out(raw)]
    if scheme is None:
        notes.append("has no folder split/ with a split: the graph gets none")
    return join(raw, nodes, edges, notes=notes)


def _edges(folder: Path, name: EdgeType) -> TypedEdges:
    place = folder / "___".join(name)
    file = place / "edge.csv.gz"
    chunks = edges_from(
        Column(file, "edges", edge_pairs(file)), features=if_there(place / "edge-feat.csv.gz")
    )
    announced = place / "num-edge-list.csv.gz"
    if announced.exists():
        chunks = counted(chunks, single_count(announced), file)
    return TypedEdges(name, chunks)


def _need(path: Path) -> Column:
    found = if_there(path)
    if found is None:
        raise InputError("no such file", file=path)
    return found


def _lines(path: Path) -> list[list[str]]:
    """The fields of a small text file."""
    with open_binary(path) as file:
        text = file.read(_MOST_BYTES)
        if file.read(1):
            raise InputError(f"has more than {_MOST_BYTES} bytes: is no list of types", file=path)
    lines = text.decode("utf-8", "replace").splitlines()
    return [[word.strip().strip('"') for word in line.split(",")] for line in lines if line.strip()]


def _table(path: Path) -> dict[str, str]:
    """A line of names and a line of values."""
    rows = _lines(path)
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or len(set(rows[0])) != len(rows[0]):
        raise InputError("must hold a line of types and a line of one value for each", file=path)
    for name in rows[0]:
        _check_name(name, path)
    return dict(zip(*rows, strict=True))


def _counts(path: Path) -> dict[str, int]:
    table = _table(path)
    for name, value in table.items():
        if not (value.isascii() and value.isdecimal() and len(value) < 16):
            raise InputError(f"the number of nodes of {name} must be one", file=path, value=value)
    return {name: int(value) for name, value in table.items()}


def _chosen(path: Path, counts: dict[str, int]) -> list[str]:
    """The types that the file says True of."""
    chosen = [name for name, value in _table(path).items() if value.lower() in ("true", "1")]
    for name in chosen:
        if name not in counts:
            raise InputError("there is no type of nodes of this name", file=path, value=name)
    return chosen


def _triples(path: Path) -> list[EdgeType]:
    found: list[EdgeType] = []
    for row in _lines(path):
        if len(row) != 3:
            raise InputError("must hold lines of source, relation, destination", file=path)
        for name in row:
            _check_name(name, path)
        found.append((row[0], row[1], row[2]))
    if len(set(found)) != len(found):
        raise InputError("lists a type of edges twice", file=path)
    return found


def _check_name(name: str, path: Path) -> None:
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise InputError("is no name of a type", file=path, value=name[:80])


def _left_out(raw: Path) -> list[str]:
    used = {"node-feat.csv.gz", "edge.csv.gz", "edge-feat.csv.gz", "num-edge-list.csv.gz"}
    folders = (raw / "node-feat", raw / "relations")
    others = {file.name for folder in folders for file in folder.glob("*/*") if file.is_file()}
    return [f"ignored: {', '.join(sorted(others - used))}"] if others - used else []
