"""Folders of tables that meta.yaml describes: DGL's CSV data sets, and any tables by type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.settings import nearest
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.source import ImportOptions, Source
from hpcgnn.storage.importers.table_files import TableFile, open_tables
from hpcgnn.storage.importers.table_options import TableOptions
from hpcgnn.storage.importers.table_types import MASKS, Described, typed_tables
from hpcgnn.storage.importers.tables import source_of

_META = "meta.yaml"
_LONGEST = 1 << 16
_EDGE_KEYS = ("file_name", "etype", "source", "target", "weight")
_NODE_KEYS = ("file_name", "ntype", "id", "label", "features")
_ETYPE = "etype: [type of the sources, relation, type of the targets]"


@dataclass
class _Meta:
    """What meta.yaml says.

    Attributes:
        edges, nodes: the keys of each table.
        separator: the delimiter of text tables.
    """

    edges: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    separator: str = ","

    @property
    def typed(self) -> bool:
        """Whether there are several types of nodes or edges."""
        crossing = any(len({entry["etype"][k] for k in (0, 2)}) > 1 for entry in self.edges[:1])
        return len(self.edges) > 1 or len(self.nodes) > 1 or crossing


def read_dgl(folder: Path, options: ImportOptions) -> Source:
    """Read the tables of a folder: ids `node_id`, `src_id`, `dst_id`; `label`, `feat`, masks.

    Columns with other names are named in meta.yaml; for one type of nodes and of edges also by the
    usual options of tables.

    Raises:
        InputError: a file or column is missing, the description is wrong, or there are several
            graphs.
    """
    meta = _read_meta(folder / _META)
    chosen = options.tables or TableOptions()
    decimal = chosen.form.decimal or "."
    form = replace(chosen.form, delimiter=meta.separator, header=True, decimal=decimal)
    edges, nodes = (
        [Described(open_tables([folder / entry["file_name"]], form), entry) for entry in entries]
        for entries in (meta.edges, meta.nodes)
    )
    for one in [*edges, *nodes]:
        for table in one.tables:
            _complete(one.keys, table)
    if meta.typed:
        typed = typed_tables(folder / _META, edges, nodes, chosen, options)
        return source_of(folder, typed.edges, [], typed.options, typed.import_options, typed)
    return _one_type(folder, edges[0], nodes[0] if nodes else None, chosen, options)


def _one_type(
    folder: Path,
    edges: Described,
    nodes: Described | None,
    chosen: TableOptions,
    options: ImportOptions,
) -> Source:
    """Return the graph of one table of edges and at most one of nodes."""
    chosen = replace(
        chosen,
        source=chosen.source or edges.keys.get("source"),
        target=chosen.target or edges.keys.get("target"),
        weight=chosen.weight or edges.keys.get("weight"),
    )
    if nodes is not None:
        keys, names = nodes.keys, nodes.tables[0].names
        chosen = replace(
            chosen,
            id=chosen.id or keys.get("id"),
            label=chosen.label or keys.get("label"),
            features=chosen.features or tuple(keys.get("features", ())),
            split_column=chosen.split_column or _masks(names),
        )
    if not chosen.edge_features and "feat" in edges.tables[0].names:
        chosen = replace(chosen, edge_features=("feat",))
    of_nodes = [] if nodes is None else nodes.tables
    return source_of(folder, edges.tables, of_nodes, chosen, options)


def _masks(names: list[str]) -> str | None:
    return ",".join(MASKS) if set(MASKS) <= set(names) else None


def _complete(keys: dict[str, Any], table: TableFile) -> None:
    """Add the columns that have DGL's names to those that meta.yaml names."""
    if "graph_id" in table.names:
        text = "has graph_id, like data sets of many graphs: store one graph, without this column"
        raise InputError(text, file=table.path)
    usual = {"source": "src_id", "target": "dst_id"}
    if "ntype" in keys:
        usual = {"id": "node_id", "label": "label", "features": "feat"}
    for purpose, name in usual.items():
        if purpose not in keys and name in table.names:
            keys[purpose] = [name] if purpose == "features" else name


def _read_meta(path: Path) -> _Meta:
    """Return the description.

    Raises:
        InputError: it is damaged, or names files outside its folder, unknown keys or many graphs.
    """
    found = _load(path)
    if found.get("graph_data"):
        raise InputError("is a data set of many graphs: store one of them", file=path)
    meta = _Meta()
    for group, keys, entries in (
        ("edge_data", _EDGE_KEYS, meta.edges),
        ("node_data", _NODE_KEYS, meta.nodes),
    ):
        given = found.get(group) or []
        if not isinstance(given, list):
            raise InputError("must be a list of tables", file=path, dataset=group)
        for entry in given:
            entries.append(_checked(entry, keys, path, group))
    if not meta.edges:
        raise InputError("names no file of edges (edge_data: file_name)", file=path)
    for entries, key, what in (
        (meta.edges, "etype", _ETYPE),
        (meta.nodes, "ntype", "ntype: NAME"),
    ):
        absent = next((entry for entry in entries if key not in entry), None)
        if absent is not None and len(meta.edges) + len(meta.nodes) > 2:
            raise InputError(
                f"names several tables of nodes or edges: add {what}",
                file=path,
                dataset=absent["file_name"],
            )
        for entry in entries:
            entry.setdefault(key, ["_N", "_E", "_N"] if key == "etype" else "_N")
    separator = found.get("separator", ",")
    if not isinstance(separator, str) or len(separator.replace("\\t", "\t")) != 1:
        raise InputError("must be one character", file=path, dataset="separator", value=separator)
    meta.separator = separator.replace("\\t", "\t")
    return meta


def _load(path: Path) -> dict[str, Any]:
    import yaml

    with open_binary(path) as file:
        text = file.read(_LONGEST + 1).decode("utf-8", "replace")
    if len(text) > _LONGEST:
        raise InputError("is too long to describe tables", file=path)

    class Loader(yaml.SafeLoader):
        """Without aliases, with which a few lines hold 10^9 values."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
            return super().compose_node(parent, index)

    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:100]
        raise InputError(f"{where}is not YAML: {reason}", file=path) from None
    if not isinstance(found, dict):
        raise InputError("must have edge_data, a list of tables, and node_data", file=path)
    return found


def _checked(entry: object, keys: tuple[str, ...], path: Path, group: str) -> dict[str, Any]:
    """Return a table's keys, whose `features` are a list of columns."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise InputError("each table needs file_name", file=path, dataset=group)
    out, name = dict(entry), entry["file_name"]
    where = f"{group}, {name}"
    for key in entry:
        if key not in keys:
            text = nearest(str(key), keys) or f": it may be {', '.join(keys)}"
            raise InputError(f"unknown key {key}{text}", file=path, dataset=where)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError("names a file outside its folder", file=path, value=name)
    if isinstance(entry.get("features"), str):
        out["features"] = [part.strip() for part in entry["features"].split(",") if part.strip()]
    for key, value in out.items():
        texts = value if key in ("etype", "features") else [value]
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            raise InputError(f"{key} must be text", file=path, dataset=where, value=str(value)[:40])
    if len(entry.get("etype", [0, 0, 0])) != 3:
        raise InputError(f"must be {_ETYPE}", file=path, dataset=where, value=entry["etype"])
    return out
