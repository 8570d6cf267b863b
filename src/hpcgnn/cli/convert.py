"""`hpcgnn convert`: turn source files into graph.h5."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcgnn.cli.convert_options import add_arguments as add_arguments
from hpcgnn.cli.displays import display_of
from hpcgnn.comm.workers import Workers
from hpcgnn.display import Display
from hpcgnn.errors import InputError, counted, warn
from hpcgnn.settings import HIGHEST, check_range, parse_size
from hpcgnn.storage.importers import guess_format, open_source, prepare
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.assemble import LinkSplit, Treatment, assemble
from hpcgnn.storage.importers.earlier_rows import knows_rows
from hpcgnn.storage.importers.folders import attach, read_node_files
from hpcgnn.storage.importers.opening import store_pipe
from hpcgnn.storage.importers.source import ImportOptions, Nodes, NoteOn, Over, Source
from hpcgnn.storage.importers.table_options import TableOptions, TextForm
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.schema import GRAPH
from hpcgnn.storage.write.atomic import check_output
from hpcgnn.system import resident_files, resident_memory, reusing_arrays

PARALLEL = False
SHARED = True  # the other ranks parse text

_RESERVE = 48 << 20  # buffers of libraries, and text being parsed
_TREATMENT = (
    "symmetrise",
    "self_loops",
    "deduplicate",
    "duplicate_weights",
    "reverse",
    "inverse_relations",
    "row_normalise",
    "labels_as",
    "edge_labels_as",
    "decimal_comma",
    "na",
)
_LEAST = 24 << 20
_SHARE = 8  # arrays of `limit` bytes at most: being sorted, and waiting for the disk


def run(args: argparse.Namespace, workers: Workers | None) -> int:
    """Convert in this process, except for the work handed to `workers`."""
    out: Path = args.out
    began = time.monotonic()
    check_output(out, GRAPH, force=args.force, inputs=_inputs(args))
    for path in _inputs(args):
        if path is not None:
            store_pipe(path, out.parent)
    check_range("--seed", args.seed, 0, HIGHEST)
    link_split = None if args.link_split is None else LinkSplit.of(args.link_split, args.seed)
    format = args.format or guess_format(args.sources[0])
    library = prepare("table" if args.nodes else format, args.sources[0])
    tables = _tables(args)
    over: Over = map if workers is None else workers.map
    options = _options(args, _limit(args.memory, library), tables, over)
    source = open_source(args.sources, format, options)
    attach(source, *_node_files(args, options), options)
    said = _print_notes(source, 0)
    treatment = Treatment(
        symmetrise=args.symmetrise,
        self_loops=args.self_loops,
        deduplicate=args.deduplicate,
        duplicate_weights=args.duplicate_weights,
        reverse=args.reverse,
        inverse_relations=args.inverse_relations,
        row_normalise=args.row_normalise,
        trust_num_nodes=args.num_nodes is not None,
        link_split=link_split,
        compress=args.compress,
    )
    kept = {k: v for k, v in vars(args).items() if k not in ("show", "print_completion")}
    settings = {name: _plain(value) for name, value in sorted(kept.items())} | {"format": format}
    with reusing_arrays(), display_of(args) as display:
        assemble(source, out, treatment, limit=options.limit, config=settings, display=display)
        _print_notes(source, said)
        _report(out, time.monotonic() - began, _size(_inputs(args)), display)
    return 0


def _print_notes(source: Source, first: int) -> int:
    """Print the notes from number `first` on; return the number of all notes."""
    for note in source.notes[first:]:
        file = note.file if isinstance(note, NoteOn) else source.file
        warn(f"hpcgnn: note: {note}" if file is None else f"hpcgnn: note: {file}: {note}")
    return len(source.notes)


def _limit(memory: str, library: int) -> int:
    """Return the bytes that one array may take so that the process stays below `memory`.

    Mapped files, such as those of libraries, don't count towards `memory`.

    Args:
        library: bytes that the library of the format will take.
    """
    held = resident_memory() - resident_files()
    free = parse_size(memory) - held - _RESERVE - library
    if free < _LEAST:
        least = (parse_size(memory) - free + _LEAST) >> 20
        raise InputError(f"--memory must be at least {least + 1}MiB", value=memory)
    return free // _SHARE


def _tables(args: argparse.Namespace) -> TableOptions | None:
    """Return the use of the columns of tables; None if no option concerns tables.

    With `--like`, settings of the edges' treatment that are not given are taken from that graph.
    """
    names = ["source", "target", "weight", "relation", "edge_label", "edge_split_column"]
    names += ["id", "label", "split_column", "split_time"]
    chosen: dict[str, Any] = {name: getattr(args, name) for name in names}
    chosen["edge_features"] = _listed(args.edge_features)
    chosen["categorical"] = _listed(args.categorical)
    chosen["features"] = () if _features_file(args) else _listed(args.features)
    chosen["nodes"] = tuple(args.nodes)
    chosen["missing"], chosen["text_ids"] = args.missing, args.string_ids
    chosen["split_ratio"] = _ratio(args.split_ratio)
    if args.like is not None:
        with GraphFile(args.like) as graph:
            like, config, fingerprint = graph.read_encoding(), graph.config, graph.fingerprint
        if like is None:
            raise InputError("was not made from tables: leave --like out", file=args.like)
        chosen["like"] = replace(like, like=like.like or fingerprint)
        chosen["like_graph"] = args.like if knows_rows(args.like) else None
        for name in _TREATMENT:
            if getattr(args, name) in (None, False, "max") and name in config:
                setattr(args, name, config[name])
    labelled = args.label is not None or args.like is not None
    form = _form(args)
    if args.edge_labels_as is not None and args.edge_label is None and args.like is None:
        raise InputError("--edge-labels-as says what --edge-label COLUMN holds: name it")
    of_edges = args.edge_label is not None or args.like is not None
    chosen["edge_label_values"] = of_edges and args.edge_labels_as == "values"
    chosen["label_values"] = labelled and args.labels_as == "values"
    if not any(chosen.values()) and form == TextForm():
        return None
    return TableOptions(form=form, seed=args.seed, **chosen)


def _form(args: argparse.Namespace) -> TextForm:
    delimiter = args.delimiter
    if delimiter is not None and (len(delimiter) != 1 or not delimiter.isascii()):
        if delimiter not in ("\\t", "tab"):
            raise InputError("--delimiter takes one ASCII character", value=delimiter)
        delimiter = "\t"
    decimal = None if args.decimal_comma is None else "," if args.decimal_comma else "."
    missing = _listed(args.na)
    return TextForm(delimiter, args.header, args.comment, decimal=decimal, missing=missing)


def _features_file(args: argparse.Namespace) -> Path | None:
    """Return the file that `--features` names; None if it names columns of tables."""
    if args.features is None or args.nodes:
        return None
    path = Path(args.features)
    return path if path.suffix in (".npy", ".npz") or path.exists() else None


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _ratio(text: str | None) -> tuple[float, float, float] | None:
    """Return three shares that add up to 1."""
    if text is None:
        return None
    try:
        parts = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        parts = []
    total = sum(parts)
    if len(parts) != 3 or not all(0 <= part < 1e9 for part in parts) or not total > 0:
        raise InputError("--split-ratio takes three shares, as in 8,1,1", value=text)
    return parts[0] / total, parts[1] / total, parts[2] / total


def _options(
    args: argparse.Namespace, limit: int, tables: TableOptions | None, over: Over
) -> ImportOptions:
    for name, least in (("num_nodes", 1), ("skip_lines", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}", value=value)
    edge_columns = {
        name: ArraySource(getattr(args, name)).column(limit)
        for name in ("edge_weights", "edge_labels", "edge_split")
        if getattr(args, name) is not None
    }
    return ImportOptions(
        columns=tuple(name.strip() for name in (args.columns or "").split(",") if name.strip()),
        skip_lines=args.skip_lines,
        num_nodes=args.num_nodes,
        weights=not args.no_weights,
        split_scheme=args.split_scheme,
        ogb_root=args.ogb_root,
        limit=limit,
        tables=tables,
        leave_out=_listed(args.leave_out),
        over=over,
        **edge_columns,
    )


def _inputs(args: argparse.Namespace) -> list[Path | None]:
    """Return all files that the options name."""
    named = [args.labels, args.split, args.types, args.ids, args.edge_weights, args.like]
    named += [args.edge_labels, args.edge_split]
    named.append(_features_file(args))
    files = [*args.sources, *args.nodes, *named]
    return [*files, *_typed(args).values(), *_arrays(args).values()]


def _typed(args: argparse.Namespace) -> dict[int, Path]:
    """Return the feature files by node type."""
    typed: dict[int, Path] = {}
    for text in args.typed_features:
        kind, _, path = text.partition("=")
        if not (kind.isascii() and kind.isdecimal() and path):
            raise InputError("--typed-features takes T=FILE.npy with a number T", value=text)
        number = int(kind[:9])
        if len(kind) > 9 or number in typed:
            raise InputError("--typed-features names a type twice, or none that exists", value=text)
        typed[number] = Path(path)
    return typed


def _arrays(args: argparse.Namespace) -> dict[str, Path]:
    """Return the files of named arrays by name."""
    arrays: dict[str, Path] = {}
    for text in args.node_array:
        name, _, path = text.partition("=")
        if not (name and path) or name in arrays:
            raise InputError("--node-array takes NAME=FILE.npy, each name once", value=text)
        arrays[name] = Path(path)
    return arrays


def _node_files(args: argparse.Namespace, options: ImportOptions) -> tuple[Nodes, int | None]:
    return read_node_files(
        features=_features_file(args),
        typed_features=_typed(args),
        labels=args.labels,
        split=args.split,
        types=args.types,
        ids=args.ids,
        labels_as=args.labels_as,
        arrays=_arrays(args),
        options=options,
    )


def _plain(value: object) -> object:
    """Return an option's value as JSON can hold it."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _size(inputs: list[Path | None]) -> int:
    """Return the bytes of the files and folders that were read."""
    total = 0
    for path in inputs:
        if path is None:
            continue
        files = path.rglob("*") if path.is_dir() else [path]
        for file in files:
            with suppress(OSError):
                total += file.stat().st_size
    return total


def _report(out: Path, seconds: float, size: int, display: Display) -> None:
    with GraphFile(out) as graph:
        parts = [counted(graph.num_nodes, "node"), counted(graph.num_edges, "edge")]
        for number, what in (
            (graph.num_features, "feature"),
            (0 if graph.multilabel else graph.num_classes, "class"),
            (graph.num_splits, "split"),
            (graph.num_relations, "relation"),
            (graph.num_types, "node type"),
        ):
            if number:
                parts.append(counted(number, what))
        if graph.multilabel:
            parts.append(f"{graph.num_classes:,} labels at once")
        if graph.array_names:
            parts.append(f"arrays {', '.join(graph.array_names)}")
        edges = graph.num_edges
    display.say(
        f"{out}: {', '.join(parts)}",
        f"{seconds:.1f} s: {edges / seconds:,.0f} edges/s, {size / seconds / 1e6:,.1f} MB/s read",
    )
