"""`hpcgnn convert`: turn source files into graph.h5."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcgnn.cli.displays import display_of
from hpcgnn.cli.file_name import file_name
from hpcgnn.comm.workers import Workers
from hpcgnn.display import Display
from hpcgnn.errors import InputError, counted, warn
from hpcgnn.settings import HIGHEST, check_range, parse_size
from hpcgnn.storage.importers import FORMATS, guess_format, open_source, prepare
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.assemble import LinkSplit, Treatment, assemble
from hpcgnn.storage.importers.folders import attach, read_node_files
from hpcgnn.storage.importers.opening import store_pipe
from hpcgnn.storage.importers.source import ImportOptions, Nodes, NoteOn, Over, Source
from hpcgnn.storage.importers.table_options import TableOptions, TextForm
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.schema import GRAPH
from hpcgnn.storage.write.atomic import check_output
from hpcgnn.system import resident_files, resident_memory

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="file or folder")
    parser.add_argument("out", type=file_name, metavar="OUT.h5")
    parser.add_argument("--format", choices=FORMATS, help="default: guessed from the name")
    _add_reading(parser)
    _add_tables(parser)
    _add_nodes(parser)
    _add_treatment(parser)
    parser.add_argument("--compress", action="store_true", help="gzip the datasets")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--memory", default="4GiB", metavar="SIZE", help="memory limit of this process (4GiB)"
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--columns",
        metavar="A,B[,W]",
        help="source, destination and weight (triples: head, relation, tail) by number or name",
    )
    group.add_argument(
        "--skip-lines",
        type=int,
        metavar="N",
        help="skip the first N lines of text; 0: the first line is an edge, not the sizes",
    )
    group.add_argument("--num-nodes", type=int, metavar="N", help="N nodes, with ids 0 .. N-1")
    group.add_argument("--edge-weights", type=Path, metavar="W.npy", help="weights of .npy edges")
    for name, what in (("labels", "label"), ("split", "split 0 .. 3")):
        text = f"{what} of each edge, in the order of the file"
        metavar = f"{name[0].upper()}.npy"
        group.add_argument(f"--edge-{name}", type=Path, metavar=metavar, help=text)
    group.add_argument("--leave-out", metavar="A,B", help="arrays of an archive to ignore")
    group.add_argument("--no-weights", action="store_true", help="ignore edge weights")
    group.add_argument("--split-scheme", metavar="NAME", help="which of OGB's splits to use")
    group.add_argument(
        "--ogb-root",
        type=Path,
        default=Path("dataset"),
        metavar="FOLDER",
        help="where the ogb package keeps its downloads (dataset)",
    )


def _add_tables(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tables (CSV, TSV, Parquet): columns by name, or by number")
    group.add_argument(
        "--nodes",
        action="extend",
        nargs="+",
        default=[],
        type=Path,
        metavar="TABLE",
        help="tables of the nodes; each row is a node",
    )
    for name, what in (
        ("source", "source node of an edge"),
        ("target", "target node of an edge"),
        ("weight", "weight of an edge"),
        ("relation", "relation of an edge, text or a number"),
        ("edge-label", "class of an edge, empty where it is unknown; A,B,C: several labels"),
        ("edge-split-column", "train, valid, test or empty for each edge; A,B,C: three masks"),
        ("id", "id of a node in the edges; for .pt files, the arrays or lists of ids, as A or A,B"),
        ("label", "class of a node, empty where it is unknown; A,B,C: several labels at once"),
        ("split-column", "train, valid, test or empty for each node; A,B,C: three masks"),
        (
            "split-time",
            "time: the earliest labelled nodes are for training, the latest for testing",
        ),
    ):
        group.add_argument(f"--{name}", metavar="COLUMN", help=what)
    group.add_argument("--edge-features", metavar="A,B,c*", help="features of the edges")
    _add_meaning(group)


def _add_meaning(group: argparse._ArgumentGroup) -> None:
    """Add options on how the cells of tables are read and interpreted."""
    group.add_argument(
        "--edge-labels-as",
        choices=("classes", "values"),
        help="what --edge-label holds (classes); values: numbers to predict",
    )
    group.add_argument(
        "--split-ratio",
        metavar="A,B,C",
        help="shares of each class's labelled nodes for training, validation and test "
        "(with --split-time: 8,1,1)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of random splits (0)")
    group.add_argument("--categorical", metavar="A,B", help="columns whose numbers are categories")
    group.add_argument(
        "--missing",
        choices=("refuse", "zero", "mean"),
        help="how to fill missing features (refuse: stop); a missing category is all zeros",
    )
    group.add_argument("--string-ids", action="store_true", help="ids are text, like 007")
    group.add_argument(
        "--delimiter", metavar="CHARACTER", help="delimiter of the columns in text tables (guessed)"
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="the first line names the columns (guessed)",
    )
    group.add_argument(
        "--decimal-comma",
        action=argparse.BooleanOptionalAction,
        help="0,5 is a half; --no-decimal-comma: 1,2 are two numbers (required where it matters)",
    )
    group.add_argument("--na", metavar="A,B", help="texts that mean a missing value, such as NA,?")
    group.add_argument("--comment", metavar="MARK", help="skip lines that begin with this mark")
    group.add_argument(
        "--like",
        type=Path,
        metavar="GRAPH.h5",
        help="use the columns, classes, categories and treatment of that graph",
    )


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("node columns in separate files")
    group.add_argument(
        "--features",
        metavar="F.npy",
        help="features as .npy, or .npz of a CSR matrix; with --nodes: columns A,B,c* of these "
        "tables",
    )
    group.add_argument(
        "--typed-features",
        action="append",
        default=[],
        metavar="T=F.npy",
        help="features of the nodes of type T, in ascending order of nodes",
    )
    group.add_argument("--labels", type=Path, metavar="L.npy", help="[N], or [N, T] of 0, 1, -1")
    group.add_argument(
        "--labels-as",
        choices=("classes", "one-hot", "several", "values"),
        help="what the labels are, where it is ambiguous; values: numbers to predict",
    )
    group.add_argument(
        "--split",
        type=Path,
        metavar="S",
        help="split: .npy of 0 .. 3, or .npz with train, valid, test",
    )
    group.add_argument("--types", type=Path, metavar="T.npy", help="type of each node")
    group.add_argument(
        "--node-array",
        action="append",
        default=[],
        metavar="NAME=A.npy",
        help='numbers [N] or [N, W] to keep as graph.nodes["NAME"]',
    )
    group.add_argument("--ids", type=Path, metavar="IDS.npy", help="id of each node in the edges")


def _add_treatment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("treatment")
    group.add_argument(
        "--symmetrise",
        "--undirected",
        action=argparse.BooleanOptionalAction,
        help="add missing reverse edges, remove duplicates",
    )
    group.add_argument(
        "--self-loops",
        choices=("add", "remove", "keep"),
        help="add a self-loop to each node without one, or remove all",
    )
    group.add_argument(
        "--deduplicate", action="store_true", help="keep one edge per pair of nodes and relation"
    )
    group.add_argument("--duplicate-weights", choices=("max", "sum"), default="max")
    group.add_argument("--reverse", action="store_true", help="reverse the direction of every edge")
    group.add_argument(
        "--inverse-relations",
        action="store_true",
        help="add the reverse of each edge of relation r under relation r + R",
    )
    group.add_argument(
        "--row-normalise", action="store_true", help="divide each row of features by its sum"
    )
    group.add_argument(
        "--link-split",
        metavar="TRAIN,VALID,TEST",
        help="shares of the edges for training, validation and test, such as 0.8,0.1,0.1",
    )


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
    library = prepare("table" if args.nodes else format)
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
    with display_of(args) as display:
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
