"""`hpcgnn convert`: turn source files into graph.h5."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcgnn.errors import InputError, say, warn
from hpcgnn.settings import HIGHEST, check_range, parse_size
from hpcgnn.storage.importers import FORMATS, guess_format, open_source, prepare
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.assemble import Treatment, assemble
from hpcgnn.storage.importers.link_split import LinkSplit
from hpcgnn.storage.importers.node_files import attach, read_node_files
from hpcgnn.storage.importers.source import ImportOptions, Nodes, Source
from hpcgnn.storage.importers.text import store_pipe
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.schema import GRAPH
from hpcgnn.storage.write.outputs import check_output
from hpcgnn.system import resident_memory

PARALLEL = False

_RESERVE = 48 << 20  # libraries' own buffers, pieces of text being parsed
_LEAST = 24 << 20
_SHARE = 8  # so many arrays of `limit` bytes at most: being sorted, and waiting for the disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="file or folder")
    parser.add_argument("out", type=Path, metavar="OUT.h5")
    parser.add_argument("--format", choices=FORMATS, help="guessed from the name when not given")
    _add_reading(parser)
    _add_nodes(parser)
    _add_treatment(parser)
    parser.add_argument("--compress", action="store_true", help="gzip the datasets")
    parser.add_argument("--force", action="store_true", help="replace a former graph of that name")
    parser.add_argument(
        "--memory", default="4GiB", metavar="SIZE", help="most this process may use (4GiB)"
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
        help="pass over the first lines of text; 0: the first holds an edge, not sizes",
    )
    group.add_argument("--num-nodes", type=int, metavar="N", help="ids are then rows 0 .. N-1")
    group.add_argument("--edge-weights", type=Path, metavar="W.npy", help="beside .npy edges")
    group.add_argument("--edge-labels", type=Path, metavar="L.npy", help="beside .npy edges")
    group.add_argument("--edge-split", type=Path, metavar="S.npy", help="0 .. 3, beside .npy edges")
    group.add_argument("--no-weights", action="store_true", help="leave weights out")
    group.add_argument("--split-scheme", metavar="NAME", help="which of OGB's splits")
    group.add_argument(
        "--ogb-root", type=Path, default=Path("dataset"), help="downloads of the ogb package"
    )


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns of the nodes in files of their own")
    group.add_argument("--features", type=Path, metavar="F.npy", help="or .npz of a CSR matrix")
    group.add_argument(
        "--typed-features",
        action="append",
        default=[],
        metavar="T=F.npy",
        help="of the nodes of type T, in ascending order",
    )
    group.add_argument("--labels", type=Path, metavar="L.npy", help="[N], or [N, T] of 0, 1, -1")
    group.add_argument(
        "--labels-as",
        choices=("classes", "one-hot", "several", "values"),
        help="what the labels are where it isn't plain; values: numbers to be predicted",
    )
    group.add_argument(
        "--split", type=Path, metavar="S", help=".npy of 0 .. 3, or .npz with train, valid, test"
    )
    group.add_argument("--types", type=Path, metavar="T.npy", help="type of each node")
    group.add_argument(
        "--node-array",
        action="append",
        default=[],
        metavar="NAME=A.npy",
        help='kept as graph.nodes["NAME"]: [N] or [N, W] of any numbers',
    )
    group.add_argument("--ids", type=Path, metavar="IDS.npy", help="what the edges call each row")


def _add_treatment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("treatment")
    group.add_argument(
        "--symmetrise",
        "--undirected",
        action=argparse.BooleanOptionalAction,
        help="add missing reverses, remove duplicates",
    )
    group.add_argument("--self-loops", choices=("add", "remove", "keep"))
    group.add_argument("--deduplicate", action="store_true", help="one edge per pair and relation")
    group.add_argument("--duplicate-weights", choices=("max", "sum"), default="max")
    group.add_argument("--reverse", action="store_true", help="turn every edge round")
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
        help="shares of the edges to learn from and to be predicted, such as 0.8,0.1,0.1",
    )
    group.add_argument("--seed", type=int, default=0, help="of --link-split (default: 0)")


def run(args: argparse.Namespace, comm: None) -> int:
    """Convert; `comm` is None (the work is done by one process)."""
    out: Path = args.out
    check_output(out, GRAPH, force=args.force, inputs=_inputs(args))
    for path in _inputs(args):
        if path is not None:
            store_pipe(path, out.parent)
    check_range("--seed", args.seed, 0, HIGHEST)
    link_split = None if args.link_split is None else LinkSplit.of(args.link_split, args.seed)
    format = args.format or guess_format(args.sources[0])
    options = _options(args, _limit(args.memory, prepare(format)))
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
    settings = {name: _plain(value) for name, value in sorted(vars(args).items())}
    assemble(source, out, treatment, limit=options.limit, config=settings | {"format": format})
    _print_notes(source, said)
    _report(out)
    return 0


def _print_notes(source: Source, first: int) -> int:
    """Print the notes from number `first` on; returns how many there are."""
    for note in source.notes[first:]:
        warn(f"hpcgnn: note: {source.file}: {note}")
    return len(source.notes)


def _limit(memory: str, library: int) -> int:
    """Bytes that one array may take so that the process stays below `memory`.

    Args:
        library: bytes that the library of the format will take.
    """
    free = parse_size(memory) - resident_memory() - _RESERVE - library
    if free < _LEAST:
        least = (parse_size(memory) - free + _LEAST) >> 20
        raise InputError(f"--memory must be at least {least + 1}MiB", value=memory)
    return free // _SHARE


def _options(args: argparse.Namespace, limit: int) -> ImportOptions:
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
        **edge_columns,
    )


def _inputs(args: argparse.Namespace) -> list[Path | None]:
    """All files that the options name."""
    named = [args.features, args.labels, args.split, args.types, args.ids, args.edge_weights]
    named += [args.edge_labels, args.edge_split]
    return [*args.sources, *named, *_typed(args).values(), *_arrays(args).values()]


def _typed(args: argparse.Namespace) -> dict[int, Path]:
    """The files of features by node type."""
    typed: dict[int, Path] = {}
    for text in args.typed_features:
        kind, _, path = text.partition("=")
        if not (kind.isascii() and kind.isdecimal() and path):
            raise InputError("--typed-features takes T=FILE.npy with a number T", value=text)
        number = int(kind[:9])
        if len(kind) > 9 or number in typed:
            raise InputError("--typed-features names a type twice, or beyond all", value=text)
        typed[number] = Path(path)
    return typed


def _arrays(args: argparse.Namespace) -> dict[str, Path]:
    """The files of named arrays by name."""
    arrays: dict[str, Path] = {}
    for text in args.node_array:
        name, _, path = text.partition("=")
        if not (name and path) or name in arrays:
            raise InputError("--node-array takes NAME=FILE.npy, each name once", value=text)
        arrays[name] = Path(path)
    return arrays


def _node_files(args: argparse.Namespace, options: ImportOptions) -> tuple[Nodes, int | None]:
    return read_node_files(
        features=args.features,
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
    """What JSON can hold of an option."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _report(out: Path) -> None:
    with GraphFile(out) as graph:
        parts = [f"{graph.num_nodes:,} nodes", f"{graph.num_edges:,} edges"]
        for number, what in (
            (graph.num_features, "features"),
            (graph.num_classes, "labels at once" if graph.multilabel else "classes"),
            (graph.num_splits, "splits" if graph.num_splits > 1 else "split"),
            (graph.num_relations, "relations"),
            (graph.num_types, "node types"),
        ):
            if number:
                parts.append(f"{number:,} {what}")
    say(f"{out}: {', '.join(parts)}")
