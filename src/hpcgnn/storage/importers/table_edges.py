"""Columns of edge tables: ends, weights, relations, features, labels, a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.cells import NUMBER, TEXT
from hpcgnn.storage.importers.table_batches import Batch
from hpcgnn.storage.importers.table_features import (
    Names,
    class_codes,
    expand,
    merged_kind,
    require_alike,
    require_columns,
)
from hpcgnn.storage.importers.table_files import TableFile
from hpcgnn.storage.importers.table_options import TableOptions, listed
from hpcgnn.storage.importers.table_values import (
    integers,
    mask_codes,
    null,
    numbers,
    set_codes,
)

_ENDS = (
    ("source", "destination"),
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("head", "tail"),
)


@dataclass
class EdgeColumns:
    """The columns of edge tables by purpose; None or empty for purposes without a column.

    Attributes:
        relations: the distinct values of `relation`.
        classes: the distinct values of the only column in `labels`, if these are classes.
        split: a column of set names, or three masks.
    """

    source: str
    target: str
    weight: str | None = None
    relation: str | None = None
    features: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    relations: Names | None = None
    classes: Names | None = None

    def used(self) -> set[str]:
        chosen = {self.source, self.target, self.weight, self.relation}
        chosen |= {*self.features, *self.labels, *self.split}
        return {name for name in chosen if name}

    def wanted(self) -> dict[str, str]:
        """Return the columns of labels, relations and the split, and the kind to read each as."""
        kinds = dict.fromkeys(self.labels, NUMBER) | dict.fromkeys(self.split, TEXT)
        for names in (self.relations, self.classes):
            if names is not None:
                kinds[names.name] = names.read_kind()
        return kinds

    def relations_of(self, batch: Batch, known: list[str]) -> np.ndarray | None:
        """Return int64 [n] relation numbers.

        Raises:
            InputError: a relation is missing, or is none of the known ones.
        """
        if self.relations is None:
            return None
        name = self.relations.name
        if batch.columns[name].null_count:
            raise null(batch, name)
        if not known:
            return integers(batch, name)
        return class_codes(batch, self.relations, known, "is not one of the known relations")

    def labels_of(self, batch: Batch, known: list[str]) -> np.ndarray | None:
        """Return int64 [n] classes (-1 unknown), int8 [n, T] labels or float64 numbers.

        Raises:
            InputError: a label is none of the classes, or one of several labels is not 0 or 1.
        """
        if not self.labels:
            return None
        if self.classes is not None:
            return class_codes(batch, self.classes, known, "is not one of the known classes")
        found = numbers(batch, self.labels)
        if not known:
            return found
        wrong = np.argwhere((found != 0) & (found != 1) & (found == found))
        if wrong.shape[0]:
            row, column = wrong[0].tolist()
            text = "each of several labels must be 0, 1 or empty"
            raise batch.error(self.labels[column], row, text, float(found[row, column]))
        return np.where(np.isnan(found), -1, found).astype(np.int8)

    def split_of(self, batch: Batch) -> np.ndarray | None:
        """Return int8 [n]: 0 none, 1 train, 2 valid, 3 test."""
        if not self.split:
            return None
        return (set_codes if len(self.split) == 1 else mask_codes)(batch, self.split)


def edge_columns(tables: list[TableFile], options: TableOptions, weights: bool) -> EdgeColumns:
    """Return the columns that the options choose, or that have the usual names.

    Args:
        weights: False ignores a column of weights.

    Raises:
        InputError: a column does not exist, or is chosen twice.
    """
    first, like = tables[0], options.like
    source, target = _ends(first, options)
    weight = options.choice("weight") if weights else None
    if weight is None and weights and not (options.columns or like) and "weight" in first.names:
        weight = "weight"
    out = EdgeColumns(source, target, weight, options.choice("relation"))
    out.labels = listed(options.choice("edge_label"))
    out.split = listed(options.edge_split_column)
    chosen = [n for n in (source, target, out.weight, out.relation, *out.labels, *out.split) if n]
    if len(set(chosen)) != len(chosen):
        raise InputError("a column is chosen for two purposes", file=first.path, value=chosen)
    patterns = options.choices("edge_features")
    out.features = expand(patterns, first, set(chosen)) if patterns else []
    both = [name for name in out.features if name in chosen]
    if both:
        raise InputError("is both a feature and something else", file=first.path, value=both[0])
    required = [n for n in (source, target, out.weight, out.relation, *out.features) if n]
    require_alike(tables, [source, target])
    for table in tables:
        require_columns(table, required)
    _check_labels(tables, out, options)
    if out.relation is not None:
        out.relations = Names.of(out.relation, tables, options.categorical)
    if len(out.labels) == 1 and not options.edge_label_values:
        out.classes = Names.of(out.labels[0], tables, options.categorical)
        out.classes.numbers = "--edge-labels-as values"
    return out


def _ends(table: TableFile, options: TableOptions) -> tuple[str, str]:
    source, target = options.choice("source"), options.choice("target")
    if source and target:
        return source, target
    if source or target:
        raise InputError("give both --source and --target", file=table.path)
    if usual := usual_ends(table.names):
        return usual
    known = ", ".join(table.names[:40])
    if len(table.names) == 1:
        known += " only (--delimiter C, if another character separates them)"
    raise InputError(
        f"has columns {known}: choose source and destination with --columns A,B, or"
        " --source A --target B",
        file=table.path,
    )


def usual_ends(names: list[str]) -> tuple[str, str] | None:
    """Return the columns of source and target if exactly one pair has usual names."""
    fitting = [pair for pair in _ENDS if set(pair) <= set(names)]
    return fitting[0] if len(fitting) == 1 else None


def _check_labels(tables: list[TableFile], columns: EdgeColumns, options: TableOptions) -> None:
    """Check the columns of labels and split: some tables may lack them, and with `like` all may."""
    for name in (*columns.labels, *columns.split):
        having = [table for table in tables if name in table.names]
        if not having and not (name in columns.labels and options.like is not None):
            require_columns(tables[0], [name])
        for table in having:
            require_columns(table, [name])
    if not any(name in table.names for table in tables for name in columns.labels):
        columns.labels = []
    for name in columns.labels if options.edge_label_values or len(columns.labels) > 1 else []:
        if merged_kind(tables, name) not in ("integer", "number", "boolean"):
            raise InputError(
                "must hold numbers where labels are values or several",
                file=tables[0].path,
                dataset=name,
            )
