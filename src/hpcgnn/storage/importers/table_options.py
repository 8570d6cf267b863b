"""Options of tables: what their columns are used for, and how text holds them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from hpcgnn.storage.encoding import Encoding


@dataclass(frozen=True)
class TextForm:
    """How a text file holds a table; None: deduced from its first line.

    Attributes:
        delimiter: one character.
        header: whether the first line names the columns; otherwise their names are 1, 2, ...
        comment: lines that begin with it are skipped; above the first line of the table, those that
            begin with # or % always are.
        skip_lines: number of lines skipped before anything else.
        decimal: "," or "." in numbers; None: a point, and numbers with a comma are refused.
        missing: texts that mean a missing value in every column, as the empty text does.
    """

    delimiter: str | None = None
    header: bool | None = None
    comment: str | None = None
    skip_lines: int = 0
    decimal: str | None = None
    missing: tuple[str, ...] = ()


_NO_COLUMNS = ("split_ratio", "seed", "columns", "like_graph")


@dataclass(frozen=True)
class TableOptions:
    """What the columns of tables are used for; None or empty: as in `like`, or unused.

    Attributes:
        nodes: the tables of the nodes.
        source, target, weight, edge_features, relation, edge_label, edge_split_column: columns of
            the edges; several labels are separated by commas, as are three masks.
        edge_label_values: labels of edges are numbers to be predicted.
        id, label, features, split_column, split_time: columns of the nodes; several labels are
            separated by commas.
        label_values: labels are numbers to be predicted.
        label_type: for tables by type, the type of nodes that has labels.
        split_ratio: shares of the labelled nodes for train, valid and test.
        seed: the seed of the split by ratio.
        categorical: columns whose numbers are names of categories.
        missing: "refuse", or the value that replaces missing numbers: "zero" or "mean".
        text_ids: ids are texts even if they look like numbers.
        columns: source, target and weight were given together: no other weight is looked for.
        form: how text files hold the tables.
        like: the encoding of an earlier graph, to be followed; its `like` names that graph.
        like_graph: the file of that graph, if the rows of its nodes are to be stored.
    """

    nodes: tuple[Path, ...] = ()
    source: str | None = None
    target: str | None = None
    weight: str | None = None
    edge_features: tuple[str, ...] = ()
    relation: str | None = None
    edge_label: str | None = None
    edge_label_values: bool = False
    edge_split_column: str | None = None
    id: str | None = None
    label: str | None = None
    label_values: bool = False
    label_type: str | None = None
    features: tuple[str, ...] = ()
    split_column: str | None = None
    split_time: str | None = None
    split_ratio: tuple[float, float, float] | None = None
    seed: int = 0
    categorical: tuple[str, ...] = ()
    missing: str | None = None
    text_ids: bool = False
    columns: bool = False
    form: TextForm = field(default_factory=TextForm)
    like: Encoding | None = None
    like_graph: Path | None = None

    def given(self) -> list[str]:
        """Return the command-line names of the options about columns of tables that were given."""
        usual = TableOptions()
        names = [f.name for f in fields(self) if f.name not in _NO_COLUMNS]
        given = [name for name in names if getattr(self, name) != getattr(usual, name)]
        shown = {"text_ids": "string_ids", "label_values": "label", "form": "delimiter"}
        shown["edge_label_values"] = "edge_labels_as"
        return ["--" + shown.get(name, name).replace("_", "-") for name in given]

    def choice(self, name: str) -> str | None:
        """Return the column chosen for this purpose, here or in `like`."""
        value = getattr(self, name)
        if value is None and self.like is not None:
            value = self.like.options.get(name)
        return value if isinstance(value, str) else None

    def choices(self, name: str) -> list[str]:
        value = getattr(self, name)
        if not value and self.like is not None:
            value = self.like.options.get(name)
        return list(value) if isinstance(value, list | tuple) else []


def listed(text: str | None) -> list[str]:
    """Return the names in `A,B,C`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
