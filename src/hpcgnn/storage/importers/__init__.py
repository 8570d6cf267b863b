"""Readers of other people's files; each gives a `Source`, which `assemble` makes into graph.h5."""

from __future__ import annotations

from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import (
    delimited,
    matrix_market,
    metis,
    npz,
    ogb,
    parquet,
    planetoid,
    type_folders,
)
from hpcgnn.storage.importers.source import ImportOptions, Source
from hpcgnn.storage.importers.text import reading, require

FORMATS = ("npz", "edges", "planetoid", "ogb", "metis", "mtx", "parquet", "triples", "types")
_SEVERAL = ("edges", "parquet", "triples")
_TAKES = {  # options that only some formats have a use for
    "--columns": ("columns", ("edges", "parquet", "triples")),
    "--skip-lines": ("skip_lines", ("edges", "triples")),
    "--edge-weights": ("edge_weights", ("edges",)),
    "--edge-labels": ("edge_labels", ("edges",)),
    "--edge-split": ("edge_split", ("edges",)),
    "--split-scheme": ("split_scheme", ("ogb",)),
}


def guess_format(path: Path) -> str:
    """The format by the name of the file or folder.

    Raises:
        InputError: the name tells nothing, or is none.
    """
    with reading(path):
        return _guess(path)


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix
    if name.startswith("ind."):
        return "planetoid"
    if path.is_dir():
        if any(path.glob("ind.*.graph")):
            return "planetoid"
        if type_folders.is_type_folders(path):
            return "types"
        return "parquet" if any(path.glob("**/*.parquet")) else "ogb"
    if name.startswith("ogbn-") and not path.exists():
        return "ogb"
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
    }
    if suffix not in known:
        raise InputError(f"the name tells no format: say --format {'|'.join(FORMATS)}", file=path)
    return known[suffix]


def prepare(format: str) -> int:
    """Load the library a format needs; returns the bytes it takes for itself while reading."""
    return parquet.prepare() if format == "parquet" else 0


def open_source(paths: list[Path], format: str, options: ImportOptions) -> Source:
    """The graph in these files, about to be read.

    Raises:
        InputError: unreadable, or not of the format.
    """
    if len(paths) > 1 and format not in _SEVERAL:
        raise InputError(f"the format {format} takes one source", file=paths[1])
    for option, (name, formats) in _TAKES.items():
        if getattr(options, name) not in (None, ()) and format not in formats:
            raise InputError(
                f"{option} goes with the format {' or '.join(formats)}, not {format}", file=paths[0]
            )
    for path in paths:
        if format in ("edges", "metis", "mtx", "npz", "triples"):
            require(path)
        elif format == "parquet":
            with reading(path):
                path.stat()
    path = paths[0]
    return {
        "npz": lambda: npz.read_npz(path, options),
        "edges": lambda: delimited.read_edge_list(paths, options),
        "planetoid": lambda: planetoid.read_planetoid(path, options),
        "ogb": lambda: ogb.read_ogb(path, options),
        "metis": lambda: metis.read_metis(path, options),
        "mtx": lambda: matrix_market.read_matrix_market(path, options),
        "parquet": lambda: parquet.read_parquet(paths, options),
        "triples": lambda: delimited.read_triples(paths, options),
        "types": lambda: type_folders.read_type_folders(path, options),
    }[format]()
