"""Readers of other programs' files; each returns a `Source`, and `assemble` writes its graph.h5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import (
    delimited,
    folders,
    matrix_market,
    metis,
    npz,
    ogb,
    planetoid,
    pyg,
    typed,
)
from hpcgnn.storage.importers.opening import reading, require
from hpcgnn.storage.importers.pairs import beside
from hpcgnn.storage.importers.source import ImportOptions, Source
from hpcgnn.storage.importers.table_options import TableOptions
from hpcgnn.storage.importers.text import is_number

FORMATS = (
    "npz",
    "edges",
    "planetoid",
    "ogb",
    "metis",
    "mtx",
    "parquet",
    "table",
    "triples",
    "pyg",
    "graphsaint",
    "reddit",
    "dgl",
    "graphml",
    "gexf",
    "types",
)
_TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
_REMEDIES = {
    ".bz2": "unpack it, or pack it with gzip or zstd",
    ".xz": "unpack it, or pack it with gzip or zstd",
    ".zip": "unpack it",
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".yaml": "name the folder of meta.yaml",
} | dict.fromkeys(
    (".arrow", ".feather", ".orc", ".json", ".jsonl", ".avro", ".pkl"), "store Parquet or CSV"
)
_PAGES = 64 << 20  # bytes of Parquet pages, with their dictionaries
_COLUMNS = ("dgl", "graphml", "gexf")  # formats with named columns, too
_SEVERAL = ("edges", "parquet", "table", "triples")
_TAKES = {  # options that only some formats accept
    "--columns": ("columns", ("edges", "parquet", "table", "triples")),
    "--skip-lines": ("skip_lines", ("edges", "table", "triples")),
    "--edge-weights": ("edge_weights", ("edges",)),
    "--edge-labels": ("edge_labels", ("edges", "parquet", "table")),
    "--edge-split": ("edge_split", ("edges", "parquet", "table")),
    "--split-scheme": ("split_scheme", ("ogb",)),
    "--leave-out": ("leave_out", ("npz", "triples", "pyg")),
}


def guess_format(path: Path) -> str:
    """Return the format that the name of the file or folder suggests.

    Raises:
        InputError: there is no such file, or its name suggests no format.
    """
    with reading(path):
        return _guess(path)


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    suffix = Path(name).suffix
    if name.startswith("ind."):
        return "planetoid"
    if path.is_dir():
        if any(path.glob("ind.*.graph")):
            return "planetoid"
        if folders.is_graphsaint(path):
            return "graphsaint"
        if folders.is_reddit(path):
            return "reddit"
        if (path / "meta.yaml").exists():
            return "dgl"
        if typed.is_type_folders(path):
            return "types"
        if any(path.glob("**/*.parquet")):
            return "parquet"
        tables = [file for ending in _TEXTS for file in sorted(path.glob(f"*{ending}"))]
        if tables and not (path / "raw").exists():
            raise InputError(
                "is a folder of tables: name the tables of edges, and with --nodes those of "
                f"nodes, such as {tables[0].name}",
                file=path,
            )
        return "ogb"
    if name.startswith("ogbn-") and not path.exists():
        return "ogb"
    if name.startswith("out."):  # KONECT
        return "edges"
    if suffix == ".npz":
        return "triples" if npz.is_triples(path) else "npz"
    known = {
        ".npy": "edges",
        ".txt": "edges",
        ".csv": "edges",
        ".tsv": "edges",
        ".el": "edges",
        ".edges": "edges",
        ".edgelist": "edges",
        ".graph": "metis",
        ".metis": "metis",
        ".mtx": "mtx",
        ".parquet": "parquet",
        ".triples": "triples",
        ".pt": "pyg",
        ".pth": "pyg",
        ".graphml": "graphml",
        ".gexf": "gexf",
    }
    if suffix in _REMEDIES:
        raise InputError(f"{suffix[1:]} is not supported: {_REMEDIES[suffix]}", file=path)
    if suffix not in known and not path.exists():
        raise InputError("no such file", file=path)
    if suffix not in known:
        raise InputError(
            f"the format can't be guessed from the name: add --format {'|'.join(FORMATS)}",
            file=path,
        )
    return known[suffix]


def prepare(format: str, path: Path) -> int:
    """Load the libraries that a file of a format needs; return the bytes that they will use."""
    if path.suffix not in (".npy", ".npz"):
        import pyarrow.csv  # noqa: F401 - takes as long as HDF5
    if format not in ("parquet", "table", "dgl"):
        return 0
    from hpcgnn.storage.importers import tables  # noqa: F401 - takes a second, and 20 MB

    return _PAGES


def is_table(path: Path, format: str, options: ImportOptions) -> bool:
    """Return whether the file is a table: it has named columns, or options name its columns."""
    if format in ("parquet", "table"):
        return True
    if format not in ("edges", "triples") or path.suffix in (".npy", ".npz"):
        return False
    if options.tables is not None and options.tables.given():
        return True
    if options.columns and all(name.isdecimal() for name in options.columns):
        return False
    fields = delimited.first_fields(path, options)
    return len(fields) > 1 and not any(is_number(field) for field in fields)


def open_source(paths: list[Path], format: str, options: ImportOptions) -> Source:
    """Return the graph in these files, ready to be read.

    Raises:
        InputError: a file can't be read, or is not of the format.
    """
    if len(paths) > 1 and format not in _SEVERAL:
        raise InputError(f"the format {format} takes one source", file=paths[1])
    for option, (name, formats) in _TAKES.items():
        if getattr(options, name) not in (None, ()) and format not in formats:
            raise InputError(
                f"{option} is for the format {' or '.join(formats)}, not {format}", file=paths[0]
            )
    for path in paths:
        if format in ("edges", "metis", "mtx", "npz", "pyg", "triples"):
            require(path)
        elif format in ("parquet", "table"):
            with reading(path):
                path.stat()
    path = paths[0]
    if format == "edges" and matrix_market.has_banner(path):
        format = "mtx"  # the Network Repository also names such files .edges
    if is_table(path, format, options):
        from hpcgnn.storage.importers import tables

        if options.edge_weights is not None:
            raise InputError("--edge-weights is for .npy edges: use --weight COLUMN", file=path)
        source = tables.read_tables(paths, _table_options(format, options), options)
        _check_one_way(options)
        if (options.edge_labels or options.edge_split) is not None:
            source.edges = beside(source.edges, options.edge_labels, options.edge_split)
        return source
    _refuse_columns(path, format, options)
    source = {
        "npz": lambda: npz.read_npz(path, options),
        "edges": lambda: delimited.read_edge_list(paths, options),
        "pyg": lambda: pyg.read_pyg(path, options),
        "graphsaint": lambda: folders.read_graphsaint(path, options),
        "reddit": lambda: folders.read_reddit(path, options),
        "dgl": lambda: _read_dgl(path, options),
        "graphml": lambda: _read_xml(path, options),
        "gexf": lambda: _read_xml(path, options),
        "planetoid": lambda: planetoid.read_planetoid(path, options),
        "ogb": lambda: ogb.read_ogb(path, options),
        "metis": lambda: metis.read_metis(path, options),
        "mtx": lambda: matrix_market.read_matrix_market(path, options),
        "triples": lambda: delimited.read_triples(paths, options),
        "types": lambda: typed.read_type_folders(path, options),
    }[format]()
    if options.tables is not None and format not in _COLUMNS:
        source.nodes.split_ratio = options.tables.split_ratio
        source.nodes.split_seed = options.tables.seed
    return source


def _check_one_way(options: ImportOptions) -> None:
    """Check that edge labels and split are not given both as a file and as a column."""
    tables = options.tables or TableOptions()
    for file, column, words in (
        (options.edge_labels, tables.edge_label, "--edge-labels and --edge-label"),
        (options.edge_split, tables.edge_split_column, "--edge-split and --edge-split-column"),
    ):
        if file is not None and column is not None:
            raise InputError(f"{words} have the same meaning: leave one out", file=file.file)


def _refuse_columns(path: Path, format: str, options: ImportOptions) -> None:
    """Refuse options about columns for a file that has no named columns."""
    given = [] if options.tables is None or format in _COLUMNS else options.tables.given()
    given = [name for name in given if format != "pyg" or name != "--id"]
    if given:
        message = f"{given[0]} is for tables, and this is read as {format}"
        raise InputError(f"{message}: leave it out", file=path)


def _read_dgl(path: Path, options: ImportOptions) -> Source:
    from hpcgnn.storage.importers import dgl

    return dgl.read_dgl(path, options)


def _read_xml(path: Path, options: ImportOptions) -> Source:
    from hpcgnn.storage.importers import xml_graphs

    return xml_graphs.read_xml(path, options)


def _table_options(format: str, options: ImportOptions) -> TableOptions:
    """Return the options of tables, completed by `--columns` and `--skip-lines`."""
    found = options.tables or TableOptions()
    if options.skip_lines is not None:
        found = replace(found, form=replace(found.form, skip_lines=options.skip_lines))
    names = options.columns
    if not names:
        if format == "triples" and found.relation is None:
            raise InputError("triples need a relation: name its column with --relation")
        return found
    needed, most = (3, 3) if format == "triples" else (2, 3)
    if not needed <= len(names) <= most:
        raise InputError("--columns takes source, destination and weight", value=names)
    if format == "triples":
        return replace(found, source=names[0], relation=names[1], target=names[2])
    weight = names[2] if len(names) > 2 and options.weights else None
    return replace(
        found, source=names[0], target=names[1], weight=weight or found.weight, columns=True
    )
