"""Random damage to graph, partition and checkpoint files: `python -m tests.faults.corruption`.

Each damaged file must be refused in one line that names it, or read exactly as before. Status 1
and a traceback at the first that is not.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from hpcgnn.comm.communicator import Communicator
from tests.storage.files import graph_content
from tests.storage.partitions import write_small
from tests.storage.read.test_corruption import graph_data, partition_data, sweep
from tests.storage.write.test_graph_writer import write
from tests.train.checkpoint.test_corruption import content, make

Read = Callable[[Path], dict[str, object]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500, help="damaged files in all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    comm = Communicator()
    with tempfile.TemporaryDirectory(prefix="hpcgnn-corruption-") as name:
        files = _make(Path(name), comm)
        refused = 0
        for number, (path, read) in enumerate(files):
            cases = args.count // len(files) + (number < args.count % len(files))
            found = sweep(path, read, args.seed + number, cases)
            refused += found
            print(f"{path.name}: {cases} damaged, {found} refused, {cases - found} read as before")
        print(f"in all: {args.count} damaged, {refused} refused, {args.count - refused} as before")
    comm.close()


def _make(folder: Path, comm: Communicator) -> list[tuple[Path, Read]]:
    files: list[tuple[Path, Read]] = []
    for sparse in (False, True):
        path = folder / f"graph-{'sparse' if sparse else 'dense'}.h5"
        write(path, graph_content(sparse=sparse), [0, 4, 9], compress=sparse)
        files.append((path, graph_data))
    for symmetric in (False, True):
        path = folder / f"{'symmetric' if symmetric else 'directed'}.p3.h5"
        write_small(path, comm, 3, symmetric=symmetric)
        files.append((path, partition_data))
    for kind in ("plain", "sharded"):
        path = folder / f"{kind}-checkpoint.h5"
        make(path, comm, kind == "sharded")
        files.append((path, content))
    return files


if __name__ == "__main__":
    main()
