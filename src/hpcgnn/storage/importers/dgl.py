"""DGL's folders of CSV files: meta.yaml, a table of nodes and a table of edges."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.source import ImportOptions, Source
from hpcgnn.storage.importers.table_options import TableOptions, TextForm
from hpcgnn.storage.importers.tables import source_of
from hpcgnn.storage.importers.text_table import TextTable

_META = "meta.yaml"
_LONGEST = 1 << 16
_MASKS = ("train_mask", "val_mask", "test_mask")


def read_dgl(folder: Path, options: ImportOptions) -> Source:
    """Read one type of nodes (`node_id`, `label`, `feat`, masks) and of edges (`src_id`, `dst_id`).

    Columns with other names are chosen by the usual options of tables.

    Raises:
        InputError: a file or column is missing, or there are several types or graphs.
    """
    edge_files, node_files, separator = _meta(folder / _META)
    form = TextForm(delimiter=separator, header=True, decimal=".")
    edges = [TextTable(folder / name, form) for name in edge_files]
    nodes = [TextTable(folder / name, form) for name in node_files]
    chosen = options.tables or TableOptions()
    chosen = replace(chosen, source=chosen.source or "src_id", target=chosen.target or "dst_id")
    for table in [*edges, *nodes]:
        if "graph_id" in table.names:
            text = (
                "has graph_id, like data sets of many graphs: store one graph, without this column"
            )
            raise InputError(text, file=table.path)
    if nodes:
        names = nodes[0].names
        chosen = replace(
            chosen,
            id=chosen.id or "node_id",
            label=chosen.label or ("label" if "label" in names else None),
            features=chosen.features or (("feat",) if "feat" in names else ()),
            split_column=chosen.split_column
            or (",".join(_MASKS) if set(_MASKS) <= set(names) else None),
        )
    if not chosen.edge_features and "feat" in edges[0].names:
        chosen = replace(chosen, edge_features=("feat",))
    return source_of(folder, list(edges), list(nodes), chosen, options)


def _meta(path: Path) -> tuple[list[str], list[str], str]:
    """Return the files of edges, the files of nodes, and the delimiter of their columns.

    Only the part of YAML that such files use is understood: file names in two lists.
    """
    with open_binary(path) as file:
        text = file.read(_LONGEST + 1).decode("utf-8", "replace")
    if len(text) > _LONGEST:
        raise InputError("is too long for a file of DGL's", file=path)
    files: dict[str, list[str]] = {"edge_data": [], "node_data": []}
    group = ""
    for line in text.splitlines():
        bare = line.split("#")[0].rstrip()
        if match := re.match(r"(\w+):", bare):
            group = match[1]
            if group == "graph_data":
                raise InputError("is a data set of many graphs: store one of them", file=path)
        for name in re.findall(r"file_name:\s*[\"']?([^\"',}\s]+)", bare):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError("names a file outside its folder", file=path, value=name)
            if group in files:
                files[group].append(name)
    if not files["edge_data"]:
        raise InputError("names no file of edges (edge_data: file_name)", file=path)
    if len(files["edge_data"]) > 1 or len(files["node_data"]) > 1:
        raise InputError(
            "has several types of nodes or edges: store one type, or tables with --relation",
            file=path,
        )
    separator = re.search(r"^separator:\s*[\"']?(\\t|[^\"'\s])", text, re.MULTILINE)
    return files["edge_data"], files["node_data"], _character(separator[1] if separator else ",")


def _character(text: str) -> str:
    return "\t" if text == "\\t" else text
