"""Ids of nodes given as an array or a list in memory, and names that such arrays usually have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hpcgnn.storage.importers.source import Column

IDS = "original_ids"
_LIKE_IDS = (
    *("id", "ids", "original_id", "node_id", "node_ids", "n_id", "global_id", "user_id"),
    *("name", "names", "node_name", "node_names", "key", "keys", "uuid"),
)


def like_ids(names: Iterable[str], kind: str = "") -> list[str]:
    """Return those of the names that usually mean ids of nodes of this type, such as `node_id`."""
    of_kind = [f"{kind.lower()}{ending}" for ending in ("_id", "_ids", "_name", "_names")]
    return [name for name in names if name.lower() in (*_LIKE_IDS, IDS, *of_kind[: 4 * bool(kind)])]


def is_listed(value: Any) -> bool:
    """Return whether the value is a list of texts, as names of nodes are given."""
    return isinstance(value, list | tuple) and any(isinstance(text, str) for text in value)


class ListedNames:
    """Names of nodes, given as a list in memory.

    Attributes:
        texts: the names by row.

    Raises:
        InputError: the list is not `count` distinct, non-empty texts.
    """

    def __init__(self, texts: list[Any], count: int, column: Column) -> None:
        wrong = next((text for text in texts if not isinstance(text, str) or not text), None)
        if len(texts) != count or wrong is not None:
            raise column.error(f"must be {count} texts, none of them empty", wrong)
        if len(set(texts)) < count:
            ((again, _),) = Counter(texts).most_common(1)
            raise column.error("gives two nodes the same name", again)
        self.texts, self._column = texts, column

    @classmethod
    def of(cls, value: Any, count: int, column: Column) -> ListedNames:
        """Return the names in a list of texts, or in an array of integers.

        Raises:
            InputError: it is neither, or as for the class.
        """
        if is_listed(value):
            return cls(list(value), count, column)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != 1:
            raise column.error("ids of nodes are integers or a list of texts")
        return cls(list(map(str, value.tolist())), count, column)

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, by row, the lengths in bytes and the concatenated bytes of the names.

        Raises:
            InputError: a text is not UTF-8.
        """
        try:
            encoded = [text.encode() for text in self.texts]
        except UnicodeEncodeError as error:
            raise self._column.error("holds a text that is not UTF-8", str(error.object)) from None
        lengths = np.array([len(text) for text in encoded], np.int64)
        yield lengths, np.frombuffer(b"".join(encoded), np.uint8)
