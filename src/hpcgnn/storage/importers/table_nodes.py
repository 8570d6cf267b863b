"""Columns of node tables: ids, labels, features, a split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.table_features import expand, require_alike, require_columns
from hpcgnn.storage.importers.table_files import TableFile
from hpcgnn.storage.importers.table_options import TableOptions, listed
from hpcgnn.storage.importers.table_values import check_split_columns


@dataclass
class NodeTableColumns:
    """The columns of node tables by purpose; None or empty for purposes without a column.

    Attributes:
        label: what `--label` names, or the graph of `--like`; kept if no table has `labels`.
        split: a column of set names, or three masks.
        time: the column whose times order the labelled nodes into sets.
    """

    id: str | None = None
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    time: str | None = None

    def used(self) -> set[str]:
        chosen = {self.id, self.time, *self.labels, *self.features, *self.split}
        return {name for name in chosen if name}


def node_columns(tables: list[TableFile], options: TableOptions, file: Path) -> NodeTableColumns:
    """Return the columns that the options choose; the ids may be in a column of the usual name.

    Args:
        file: the file that errors about the options name.

    Raises:
        InputError: a column does not exist, that of the ids is not known, or there are options but
            no tables.
    """
    out = NodeTableColumns(options.choice("id"), options.choice("label"), time=options.split_time)
    out.split = listed(options.split_column)
    check_split_columns(out.split, file, "--split-column")
    if not tables:
        _refuse_options(options)
        return out
    out.labels = listed(out.label)
    first = tables[0]
    if out.id is None:
        out.id = _id_column(first)
    others = out.used()
    patterns = options.choices("features")
    if patterns:
        out.features = expand(patterns, first, others)
    require_alike(tables, [out.id])
    for table in tables:
        require_columns(table, [out.id, *out.features])
    for name in sorted(others - {out.id}):
        having = [table for table in tables if name in table.names]
        if not having and not (name in out.labels and options.like is not None):
            require_columns(first, [name])
        for table in having:
            require_columns(table, [name])
    if not any(name in table.names for table in tables for name in out.labels):
        out.labels = []
    return out


def _id_column(table: TableFile) -> str:
    found = usual_id(table.names)
    if found is None:
        known = ", ".join(table.names[:40])
        raise InputError(
            f"has columns {known}: choose the one with the nodes' ids with --id", file=table.path
        )
    return found


def usual_id(names: list[str]) -> str | None:
    """Return the column of ids if exactly one has a usual name."""
    fitting = [name for name in ("id", "node", "node_id") if name in names]
    return fitting[0] if len(fitting) == 1 else None


def _refuse_options(options: TableOptions) -> None:
    for name in ("id", "label", "features", "split_column", "split_time"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is for tables of nodes: name these with --nodes")
