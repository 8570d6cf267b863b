"""Running `hpcgnn convert` in this process and looking at what it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.cli.main import main
from hpcgnn.storage.read.graph_file import GraphFile, GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData
from hpcgnn.storage.schema import Counts


@dataclass
class Converted:
    """A whole graph.h5 in memory."""

    counts: Counts
    slab: GraphSlab
    nodes: NodeData
    names: list[str] | None = None

    @property
    def destinations(self) -> np.ndarray:
        return np.repeat(np.arange(self.counts.num_nodes), np.diff(self.slab.indptr))

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(source, destination), ascending."""
        return sorted(zip(self.slab.indices.tolist(), self.destinations.tolist(), strict=True))

    @property
    def named_edges(self) -> list[tuple[int, int]]:
        """The same between original ids."""
        ids = self.nodes.original_ids
        assert ids is not None
        return sorted((int(ids[s]), int(ids[d])) for s, d in self.edges)

    @property
    def weights(self) -> dict[tuple[int, int], float]:
        """By (source, destination), where there are no multi-edges."""
        assert self.slab.weight is not None
        pairs = zip(self.slab.indices.tolist(), self.destinations.tolist(), strict=True)
        out = dict(zip(pairs, self.slab.weight.tolist(), strict=True))
        assert len(out) == self.counts.num_edges
        return out

    @property
    def matrix(self) -> np.ndarray:
        """[N, N]: summed weights of the edges from i to j at (i, j)."""
        out = np.zeros((self.counts.num_nodes,) * 2)
        weight = 1.0 if self.slab.weight is None else self.slab.weight
        np.add.at(out, (self.slab.indices, self.destinations), weight)
        return out

    @property
    def dense_features(self) -> np.ndarray:
        found = self.nodes.features
        if not isinstance(found, CsrRows):
            assert found is not None
            return found
        out = np.zeros(found.shape, np.float32)
        rows = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
        np.add.at(out, (rows, found.indices), found.data)
        return out


def read(path: Path) -> Converted:
    with GraphFile(path) as graph:
        graph.verify()
        rows = graph.read_rows(0, graph.num_nodes)
        names = None if graph.names is None else graph.names.texts(0, graph.num_nodes)
        return Converted(graph.counts, rows, graph.read_nodes(0, graph.num_nodes), names)


@pytest.fixture
def convert(tmp_path_factory, capfd) -> Callable[..., Converted]:
    """`convert(source, "--option", ...)`: must succeed; the graph, read back and verified."""

    def run(*args: object) -> Converted:
        folder = tmp_path_factory.mktemp("out")
        sources = [a for a in args if isinstance(a, Path)]
        options = [str(a) for a in args if not isinstance(a, Path)]
        status = main(["convert", *map(str, sources), str(folder / "g.h5"), *options])
        assert status == 0, capfd.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["g.h5"]
        return read(folder / "g.h5")

    return run


@pytest.fixture
def refused(tmp_path_factory, capfd) -> Callable[..., str]:
    """`refused(source, "--option", ...)`: must fail with one line, returned, and leave nothing."""

    def run(*args: object) -> str:
        folder = tmp_path_factory.mktemp("out")
        sources = [a for a in args if isinstance(a, Path)]
        options = [str(a) for a in args if not isinstance(a, Path)]
        capfd.readouterr()
        status = main(["convert", *map(str, sources), str(folder / "g.h5"), *options])
        lines = [line for line in capfd.readouterr().err.splitlines() if ": note: " not in line]
        assert status == 2, lines
        assert len(lines) == 1 and lines[0].startswith("hpcgnn: error: "), lines
        assert list(folder.iterdir()) == []
        return lines[0]

    return run


@pytest.fixture
def made(tmp_path, capfd) -> Callable[..., Path]:
    """`made(source, ..., "--option", ...)`: the file that was made."""

    def run(*args: object, out: str = "g.h5") -> Path:
        sources = [str(arg) for arg in args if isinstance(arg, Path)]
        options = [str(arg) for arg in args if not isinstance(arg, Path)]
        where = options.index("--nodes") if "--nodes" in options else len(options)
        count = options[where + 1] if where < len(options) else "0"
        nodes = sources[len(sources) - int(count) :]
        sources = sources[: len(sources) - int(count)]
        options = options[:where] + (["--nodes", *nodes] if nodes else []) + options[where + 2 :]
        status = main(["convert", *sources, str(tmp_path / out), "--force", *options])
        assert status == 0, capfd.readouterr().err
        with GraphFile(tmp_path / out) as graph:
            graph.verify()
        return tmp_path / out

    return run
