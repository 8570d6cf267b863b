"""Checks that all ranks have the same facts, and errors that all ranks raise together."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.errors import InputError

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


@contextmanager
def agreed(comm: Communicator, where: str) -> Iterator[None]:
    """Run the block; all ranks leave it alike, without an error or with the first rank's."""
    error: Exception | None = None
    with comm.at(where):
        try:
            yield
        except Exception as caught:
            error = caught
        comm.agree(error, where=where)


_SHOWN = 80
_PIECE = 1 << 20


def require_same(
    comm: Communicator,
    facts: Mapping[str, object],
    what: str,
    *,
    file: object = None,
) -> None:
    """Check that `facts` are the same on all ranks, comparing their `repr`. Collective.

    Args:
        what: what the facts are, as in "options": the message begins with it.
        file: the file they were read from.

    Raises:
        InputError: on all ranks, naming the first fact that differs and the first such rank.
    """
    own = {name: _text(value) for name, value in facts.items()}
    facts_P = comm.allgather(own, where=f"compare {what}")
    for name in dict.fromkeys(name for found in facts_P for name in found):
        texts = [found.get(name, "not given") for found in facts_P]
        usual = Counter(texts).most_common(1)[0][0]
        odd = next((rank for rank, text in enumerate(texts) if text != usual), None)
        if odd is not None:
            same = next(rank for rank, text in enumerate(texts) if text == usual)
            comm.agree(
                InputError(
                    f"the ranks have different {what}: {name} is {texts[odd][:_SHOWN]} on "
                    f"rank {odd}, {usual[:_SHOWN]} on rank {same}; give all ranks the same",
                    file=None if file is None else str(file),
                ),
                where=f"compare {what}",
            )


def _text(value: object) -> str:
    """A value in letters that every user knows: a path is its name."""
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def require_same_file(comm: Communicator, path: Path, what: str) -> None:
    """Check that a file that each rank reads by itself has the same content on all. Collective.

    Args:
        what: what the file holds, as in "pairs": the message begins with it.

    Raises:
        InputError: on all ranks: the contents differ, or a rank can't read the file.
    """
    facts = {"bytes": 0, "checksum": 0}
    with agreed(comm, f"read the {what}"):
        try:
            if not path.is_file():
                raise InputError(
                    "is not a regular file" if path.exists() else "no such file", file=path
                )
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    facts["bytes"] += len(piece)
                    facts["checksum"] = zlib.crc32(piece, facts["checksum"])
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=path) from None
    require_same(comm, facts, what, file=path)
