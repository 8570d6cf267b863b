"""The options of `hpcgnn convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcgnn.cli.file_name import file_name
from hpcgnn.storage.importers import FORMATS


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
    group = parser.add_argument_group(
        "tables (CSV, TSV, Parquet): columns by name, without a header by number"
    )
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
