"""A writer of partition files: all ranks write one file, completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError
from hpcgnn.storage.checks import Place
from hpcgnn.storage.fingerprint import fingerprint, to_hex
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.nodes import CsrRows
from hpcgnn.storage.read.parts import Part, check_edges, check_ids, part_name
from hpcgnn.storage.read.reader import StoredColumn
from hpcgnn.storage.schema import (
    COUNT_LIMITS,
    COUNT_NAMES,
    PARTITION,
    chunk_rows,
    exceeded,
    version_of,
)
from hpcgnn.storage.write import atomic, parallel

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


def copy_texts(graph: Path, temporary: Path, path: Path, *, compress: bool) -> None:
    """Copy the graph's names of nodes and encoding of tables into the file to be named `path`.

    Raises:
        InputError: the graph file is damaged.
        OutputError: the file can't be written.
    """
    with GraphFile(graph) as source:
        columns = source.text_columns()
        if columns:
            with atomic.write(temporary, "r+", shown=path) as output:
                for column in columns:
                    _copy(column, output, compress)


def _copy(column: StoredColumn, output: atomic.OutputFile, compress: bool) -> None:
    dataset = output.dataset(column.name, column.dtype, column.shape, compress=compress)
    step = chunk_rows(column.shape[1:], column.dtype)
    for low in range(0, len(column), step):
        high = min(len(column), low + step)
        dataset[low:high] = column.read(low, high)
        output.check()


def write_parts(
    path: str | Path,
    comm: Communicator,
    parts: Sequence[Part],
    header: Mapping[str, Any],
    *,
    compress: bool = False,
    graph: Path | None = None,
) -> None:
    """Write the parts that all ranks hold into one file; collective.

    With an h5py built for MPI the ranks write at the same time, otherwise in turn.

    Args:
        path: the file to write; an existing one is replaced at the very end.
        parts: this rank's parts; over all ranks, each part is given exactly once.
        header: the counts (`schema.Counts`), `symmetric`, `method`, `graph_fingerprint`, `report`
            and `config` (both dictionaries); the same on all ranks.
        compress: gzip all datasets.
        graph: the graph.h5 whose names of nodes and encoding of tables are copied as well.

    Raises:
        InputError: the parts break the rules of the format.
        OutputError: the file can't be written; nothing is left of it.
    """
    path = Path(path)
    checked: list[CheckedPart] = []
    with agreed(comm, "check the parts"):
        checked = [CheckedPart(path, part, header) for part in parts]
    gathered = comm.gather([part.summary() for part in checked], where="gather part sizes")
    with ExitStack() as stack:
        temporary = path
        with agreed(comm, "start the partition file"):
            if gathered is not None:
                temporary = stack.enter_context(atomic.claim(path))
                _start(path, temporary, [one for rank in gathered for one in rank], header)
                if graph is not None:
                    copy_texts(graph, temporary, path, compress=compress)
        temporary = comm.broadcast(temporary, where="name of the partition file")
        if h5py.get_config().mpi and comm.size > 1:
            own = {name: array for part in checked for name, array in part.arrays.items()}
            attributes = [attribute for part in checked for attribute in part.attributes]
            parallel.write_together(path, temporary, comm, own, attributes, compress)
        else:
            _write_in_turn(path, temporary, comm, checked, compress)
        with agreed(comm, "name the partition file"):
            if comm.rank == 0:
                atomic.publish(temporary, path)


class CheckedPart:
    """A checked part with its datasets, attributes and fingerprint."""

    def __init__(self, path: Path, part: Part, header: Mapping[str, Any]) -> None:
        self.part = part
        group = part_name(part.index)
        if (part.out_edges is None) != bool(header["symmetric"]):
            raise InputError("out_edges must be None in a symmetric graph only", file=path)
        check_ids(part.ids, int(header["num_nodes"]), Place(path, f"{group}/nodes/ids"))
        for side, lists in part.sides().items():
            place = Place(path, f"{group}/{side}")
            check_edges(lists, part.index, part.num_nodes, int(header["num_relations"]), place)
        self.arrays = part.arrays()
        self.fingerprint = sum(fingerprint(name, array) for name, array in self.arrays.items())
        self.attributes: list[tuple[str, str, int | str]] = [
            (group, "fingerprint", to_hex(self.fingerprint))
        ]
        if isinstance(part.nodes.features, CsrRows):
            name = f"{group}/nodes/features"
            self.attributes.append((name, "width", part.nodes.features.width))

    def summary(self) -> dict[str, Any]:
        """Return what rank 0 must know of this part."""
        sides = self.part.sides().items()
        return {
            "index": self.part.index,
            "num_parts": self.part.num_parts,
            "sizes": (self.part.num_nodes, self.part.num_edges),
            "fingerprint": self.fingerprint,
            "version": version_of({name: array.dtype for name, array in self.arrays.items()}),
            "sends": {side: np.diff(lists.send_ptr).astype(np.int32) for side, lists in sides},
            "receives": {side: np.diff(lists.recv_ptr).astype(np.int32) for side, lists in sides},
        }


def _start(
    path: Path, temporary: Path, found: list[dict[str, Any]], header: Mapping[str, Any]
) -> None:
    """Create the file with everything that does not belong to a single part."""
    place = Place(path, "exchange")
    found.sort(key=lambda summary: summary["index"])
    num_parts = len(found)
    given = [summary["index"] for summary in found]
    if given != list(range(num_parts)) or any(s["num_parts"] != num_parts for s in found):
        raise place.error("each part must be given exactly once", given)
    arrays = {"exchange/sizes": np.array([summary["sizes"] for summary in found], np.int64)}
    totals = arrays["exchange/sizes"].sum(axis=0).tolist()
    if totals != [header["num_nodes"], header["num_edges"]]:
        raise place.error("the parts must add up to num_nodes and num_edges", totals)
    for side in found[0]["sends"]:
        sends = np.stack([summary["sends"][side] for summary in found])
        if not np.array_equal(sends, np.stack([s["receives"][side] for s in found]).T):
            raise place.error(f"what parts send is not what they receive (edges {side})")
        arrays[f"exchange/{side}"] = sends
    attributes = {name: int(header[name]) for name in (*COUNT_NAMES, "symmetric")}
    name = exceeded(attributes)
    if name is not None:
        raise place.error(f"{name} must lie in 0 .. {COUNT_LIMITS[name]}", attributes[name])
    texts = {name: header[name] for name in ("method", "graph_fingerprint", "report", "config")}
    with atomic.write(temporary, "w", shown=path) as output:
        for name, array in arrays.items():
            dataset = output.dataset(name, array.dtype, array.shape, compress=array.size > 4096)
            dataset[...] = array
        output.set_attributes(
            {
                "format": PARTITION,
                "version": max(summary["version"] for summary in found),
                "num_parts": num_parts,
                **attributes,
                **texts,
                "fingerprint": to_hex(sum(summary["fingerprint"] for summary in found)),
            }
        )


def _write_in_turn(
    path: Path, temporary: Path, comm: Communicator, checked: Sequence[CheckedPart], compress: bool
) -> None:
    with comm.in_turn("write the partition file"):
        if checked:
            _append(path, temporary, checked, compress)


def _append(path: Path, temporary: Path, checked: Sequence[CheckedPart], compress: bool) -> None:
    with atomic.write(temporary, "r+", shown=path) as output:
        for part in checked:
            for name, array in part.arrays.items():
                dataset = output.dataset(name, array.dtype, array.shape, compress=compress)
                if array.size:
                    dataset[...] = array
                output.check()
            for group, name, value in part.attributes:
                atomic.set_attribute(output.h5[group], name, value)
