"""How the columns of a user's tables were encoded: kept in graph.h5 and partition files as JSON.

A graph converted from tables holds numbers. The encoding records which values of which columns they
stand for, so that later tables can be encoded in the same way (`hpcgnn convert --like`) and
predictions can name the classes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np

from hpcgnn.storage.checks import Place

MAX_BYTES = 256 << 20
NUMBER, CATEGORY, VECTOR = "number", "category", "vector"
_KINDS = (NUMBER, CATEGORY, VECTOR)
_LATER: dict[str, Any] = {  # absent in files of earlier versions
    "edge_classes": [],
    "node_types": [],
    "edge_types": [],
    "typed_features": {},
}


@dataclass
class EncodedColumn:
    """A column of a table that was encoded as one or more features.

    Attributes:
        name: the column's name in the table.
        kind: "number" (one feature), "category" (a feature for each of `values`: 1 where the row
            has it) or "vector" (a list of `width` numbers in each row).
        values: the values of a category, in the order of its features.
        fill: the number that replaces a missing one; None if none may be missing. A missing
            category becomes all zeros, unless missing values are refused.
        width: the number of features.
    """

    name: str
    kind: str = NUMBER
    values: list[str] = field(default_factory=list)
    fill: float | None = None
    width: int = 1

    def names(self) -> list[str]:
        """Return a name for each feature."""
        if self.kind == CATEGORY:
            return [f"{self.name}={value}" for value in self.values]
        return (
            [self.name] if self.kind == NUMBER else [f"{self.name}[{k}]" for k in range(self.width)]
        )


@dataclass
class Encoding:
    """How tables were encoded as the numbers of a graph.

    Attributes:
        ids: "text" or "integer".
        options: the chosen columns by purpose (`source`, `target`, ...), as in `TableOptions`; each
            a name or a list of names.
        features, edge_features: the encoded columns, in the order of the graph's features.
        classes: names of the classes 0, 1, ...; empty without labels, or if the labels are numbers
            that were kept as they are.
        relations: names of the relations 0, 1, ...
        edge_classes: names of the classes of edges, as in `classes`.
        missing: "refuse", "zero" or "mean".
        like: fingerprint of the graph whose encoding was followed; empty if none was.
        node_types, edge_types: for tables by type, the names of the types 0, 1, ... of nodes, and
            source type, relation and target type of the relations 0, 1, ...
        typed_features: for tables by type, the encoded columns of each type in place of `features`.
    """

    ids: str = "integer"
    options: dict[str, Any] = field(default_factory=dict)
    features: list[EncodedColumn] = field(default_factory=list)
    edge_features: list[EncodedColumn] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)
    edge_classes: list[str] = field(default_factory=list)
    missing: str = "refuse"
    like: str = ""
    node_types: list[str] = field(default_factory=list)
    edge_types: list[list[str]] = field(default_factory=list)
    typed_features: dict[str, list[EncodedColumn]] = field(default_factory=dict)

    def to_array(self) -> np.ndarray:
        """Return the encoding as JSON: uint8 [n]."""
        text = json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)

    @classmethod
    def from_array(cls, data: np.ndarray, place: Place) -> Self:
        """Return the encoding that `to_array` wrote.

        Raises:
            InputError: the data are not a valid encoding.
        """
        try:
            found = _LATER | json.loads(data.tobytes())
            found = {name.name: found[name.name] for name in fields(cls)}
            for name in ("features", "edge_features"):
                found[name] = [EncodedColumn(**column) for column in found[name]]
            found["typed_features"] = {
                kind: [EncodedColumn(**column) for column in columns]
                for kind, columns in found["typed_features"].items()
            }
            encoding = cls(**found)
            encoding._check()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise place.error(f"is not a description of tables: {str(error)[:80]}") from None
        return encoding

    def _check(self) -> None:
        for columns in (self.features, self.edge_features, *self.typed_features.values()):
            for column in columns:
                _require(column.kind in _KINDS and isinstance(column.name, str), "kind of a column")
                _require(_are_texts(column.values), "values of a column")
                _require(isinstance(column.width, int) and 0 < column.width < 1 << 31, "width")
                fill = column.fill
                _require(fill is None or isinstance(fill, int | float), "fill of a column")
                wanted = len(column.values) if column.kind == CATEGORY else column.width
                _require(column.width == wanted, "width")
        _require(self.ids in ("text", "integer"), "ids")
        named = (self.classes, self.relations, self.edge_classes, self.node_types)
        _require(all(_are_texts(names) for names in named), "names")
        _require(isinstance(self.edge_types, list), "types of edges")
        _require(
            all(_are_texts(one) and len(one) == 3 for one in self.edge_types), "types of edges"
        )
        _require(set(self.typed_features) <= set(self.node_types), "types of nodes")
        _require(isinstance(self.options, dict), "options")
        for value in self.options.values():
            _require(value is None or isinstance(value, str) or _are_texts(value), "options")
        _require(isinstance(self.like, str), "like")
        _require(self.missing in ("refuse", "zero", "mean"), "missing")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
