"""`hpcgnn info`: say what a file holds, from its header alone."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError, printable, say
from hpcgnn.storage.checks import nesting
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.partition_file import PartitionFile, check_whole
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import CHECKPOINT, GRAPH, PARTITION, PREDICTIONS

PARALLEL = False

_SHOWN_PARTS = 32
_SHOWN_NAMES = 8
_DEEPEST = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.h5",
        help="graph, partition, checkpoint or predictions file",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="read and check every value as well")


def run(args: argparse.Namespace, comm: None) -> int:
    if args.file.is_dir():
        raise InputError("is a folder: `hpcgnn report` shows a run directory", file=args.file)
    content = describe(args.file)
    if args.check:
        check(args.file, content)
    if args.json:
        print(json.dumps(content, indent=1))
    else:
        say(*_text(content))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Return `file`, `format`, `bytes`, `attributes`, `datasets`, and for partitions `parts`.

    Raises:
        InputError: it isn't a file of this package, or its header is damaged.
    """
    with Reader(path, None) as reader:
        kind = reader.text("format")
    if kind not in (GRAPH, PARTITION, CHECKPOINT, PREDICTIONS):
        raise InputError("has a format that this release does not know", file=path, value=kind)
    content: dict[str, Any] = {"file": str(path), "format": kind, "bytes": path.stat().st_size}
    if kind == GRAPH:
        with GraphFile(path) as graph:
            content |= _texts(graph)
    elif kind == PARTITION:
        with PartitionFile(path) as file:
            content |= _texts(file)
            content["parts"] = [{"nodes": int(n), "edges": int(e)} for n, e in file.sizes]
    with Reader(path, kind) as reader:
        content["attributes"] = {k: _decoded(v) for k, v in sorted(reader.attributes.items())}
        content["datasets"] = reader.walk()
    return content


def _texts(file: GraphFile | PartitionFile) -> dict[str, Any]:
    """Return `names`: the first text ids of nodes; `tables`: how tables were encoded."""
    found: dict[str, Any] = {}
    if file.names is not None:
        found["names"] = file.names.texts(0, min(_SHOWN_NAMES, file.counts.num_nodes))
    encoding = file.read_encoding()
    if encoding is not None:
        features = [name for column in encoding.features for name in column.names()]
        edge_features = [name for column in encoding.edge_features for name in column.names()]
        found["tables"] = {
            "classes": encoding.classes,
            "features": features,
            "edge features": edge_features,
            "relations": encoding.relations,
            "edge classes": encoding.edge_classes,
            **{
                f"features of {kind}": [name for column in columns for name in column.names()]
                for kind, columns in encoding.typed_features.items()
            },
            "columns": {name: value for name, value in encoding.options.items() if value},
        }
    return found


def check(path: Path, content: dict[str, Any]) -> None:
    """Read and check every value.

    Raises:
        InputError: for the first error found.
    """
    if content["format"] == GRAPH:
        with GraphFile(path) as graph:
            graph.verify()
    elif content["format"] == PARTITION:
        with PartitionFile(path) as partition:
            check_whole(partition)
    elif content["format"] == CHECKPOINT:
        from hpcgnn.train.checkpoint import file, rows  # PyTorch takes seconds to load

        file.read(path)
        rows.read_every(path)
    else:
        from hpcgnn.train.prediction_check import check_predictions

        with Reader(path, content["format"]) as reader:
            columns = {
                found["name"]: reader.column(
                    found["name"], (found["dtype"],), tuple(found["shape"])
                )
                for found in content["datasets"]
            }
            check_predictions(reader, columns)
    content["checked"] = True


def _decoded(value: int | str) -> Any:
    """Return the value of a JSON text, or the text itself if it is nested too deeply to read."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if nesting(found, _DEEPEST) <= _DEEPEST else value
    return value


def _text(content: dict[str, Any]) -> list[str]:
    attributes = content["attributes"]
    kind = content["format"].removeprefix("hpcgnn-")
    size = _bytes(content["bytes"])
    lines = [f"{content['file']}: {kind}, format version {attributes['version']}, {size}"]
    if content.get("checked"):
        lines.append("every value was read and is valid")
    hidden = ("format", "version", "checksum")
    plain = {k: v for k, v in attributes.items() if k not in hidden and not isinstance(v, dict)}
    lines += _pairs({k: v for k, v in plain.items() if v != 0})
    shown = {name: _some(values) for name, values in content.get("tables", {}).items() if values}
    if "names" in content:
        shown["ids"] = _some(content["names"], content["attributes"].get("num_nodes"))
    if shown:
        lines += ["", "tables", *_pairs(shown)]
    report = attributes.get("report")
    report = report if isinstance(report, dict) else {}
    if "parts" in content:
        lines += ["", "parts", *_table(_part_rows(content["parts"], report))]
    if report:
        lines += ["", "report", *_report(report)]
    for name, value in attributes.items():
        if isinstance(value, dict) and value and value is not report:
            said = {k: v for k, v in value.items() if v is not None and v is not False and v != []}
            lines += ["", name, *_pairs(said)]
    return [*lines, "", "datasets", *_table(_grouped(content["datasets"]))]


def _some(values: Any, number: int | None = None) -> str:
    """Return a text of the first values and the number of all."""
    if isinstance(values, dict):
        return ", ".join(f"{key} {_some(value)}" for key, value in values.items())
    if isinstance(values, str):
        return printable(values)
    number = len(values) if number is None else number
    first = ", ".join(printable(value) for value in values[:_SHOWN_NAMES])
    return first if number <= _SHOWN_NAMES else f"{first}, ... ({number:,} in all)"


def _part_rows(parts: list[dict[str, int]], report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each part: its sizes, and lists of the report with a value per part."""
    rows: list[dict[str, Any]] = [{"part": index} | part for index, part in enumerate(parts)]
    for name, values in report.items():
        if isinstance(values, list) and len(values) == len(parts):
            for row, value in zip(rows, values, strict=True):
                row[name.replace("_", " ")] = value
    if len(rows) > _SHOWN_PARTS:
        more = f"and {len(rows) - _SHOWN_PARTS} more (--json shows all)"
        return [*rows[:_SHOWN_PARTS], {"part": more}]
    return rows


def _report(report: dict[str, Any]) -> list[str]:
    """Return lines of the report's figures, beside those of a random partition if it has them."""
    other = report.get("random")
    own = _figures({name: value for name, value in report.items() if name != "random"})
    if not isinstance(other, dict):
        return _pairs(own)
    beside = _figures(other)
    return _table(
        [{"": name, "this": value, "random": beside.get(name, "")} for name, value in own.items()]
    )


def _figures(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return single values by readable name; lists are left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        readable = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            found |= _figures(value, f"{readable} of ")
        elif not isinstance(value, list):
            found[readable] = value
    return found


def _grouped(datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per dataset, combining the datasets of all parts."""
    rows: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        name = re.sub(r"^parts/\d+/", "parts/*/", dataset["name"])
        shape = "x".join(map(str, dataset["shape"])) or "scalar"
        row: dict[str, Any] = {"name": name, "shape": shape, "type": dataset["dtype"]}
        row |= {"bytes": dataset["bytes"], "stored": dataset["stored_bytes"]}
        if name in rows:
            row["shape"] = "various"
            row["bytes"] += rows[name]["bytes"]
            row["stored"] += rows[name]["stored"]
        rows[name] = row
    return [
        row | {"bytes": _bytes(row["bytes"]), "stored": _bytes(row["stored"])}
        for row in rows.values()
    ]


def _pairs(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {name:<{width}}  {_cell(value)}" for name, value in values.items()]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    numeric = [all(isinstance(row.get(name, 0), int | float) for row in rows) for name in names]
    return [
        "  "
        + "  ".join(
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
