"""Names of node types and relations, which arrays and models know by number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

_MOST_BYTES = 16 << 10  # longer lists don't fit into an attribute of a file


@dataclass(frozen=True)
class KindNames:
    """Names of the node types and relations 0, 1, ...; empty where they are not known."""

    node_types: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any], relations: Sequence[str] = ()) -> Self:
        """Return the names in a configuration: of graph.h5, or what `stored` returned.

        Args:
            stored: `node_types`, and `relations` or `edge_types` (source, relation, destination);
                what has another form counts as unknown.
            relations: names of relations from elsewhere, if `stored` has none.
        """
        triples = stored.get("edge_types")
        if isinstance(triples, list) and all(map(_are_texts, triples)):
            triples = [", ".join(triple) for triple in triples]
        named = (stored.get("relations"), triples, list(relations))
        found = next((names for names in named if names and _are_texts(names)), ())
        types = stored.get("node_types")
        kinds = cls(tuple(types) if _are_texts(types) else (), tuple(found))
        return kinds if len(json.dumps(kinds.stored())) <= _MOST_BYTES else cls()

    def stored(self) -> dict[str, list[str]]:
        """Return the known names for `of`."""
        named = {"node_types": self.node_types, "relations": self.relations}
        return {what: list(names) for what, names in named.items() if names}


def moved(trained: Sequence[str], found: Sequence[str]) -> tuple[str, int, int] | None:
    """Return a name that has another number in `found`, with both numbers; None if none has."""
    numbers = {name: number for number, name in enumerate(trained)}
    for number, name in enumerate(found):
        if numbers.get(name, number) != number:
            return name, numbers[name], number
    return None


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
