"""The problem that all contenders train on: a graph, its partitions, the initial weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpcgnn.bench import job
from hpcgnn.bench.job import Layout, Limits
from hpcgnn.errors import HpcgnnError, InputError, warn
from hpcgnn.storage.generate.sizes import check_sizes
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.schema import TRAIN, VALID
from hpcgnn.train.weights import export

KINDS = ("sage", "gcn", "gat", "gatv2")  # models that peers have too


@dataclass(frozen=True)
class Generated:
    """A graph made by `hpcgnn generate sbm`."""

    nodes: int
    degree: float
    features: int
    classes: int
    seed: int
    split: str = "100/0/0"  # percentages of training, validation and test nodes

    def __post_init__(self) -> None:
        check_sizes(self.nodes, self.degree, self.features, self.classes, self.seed)

    def named(self) -> str:
        size = f"sbm-{self.nodes}-{self.degree:g}-{self.features}-{self.classes}-{self.seed}"
        return f"{size}-{self.split.replace('/', '-')}"

    def options(self) -> list[str]:
        return [f"--{name}={value}" for name, value in vars(self).items()]


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model: layer type, layers, width over all heads, heads."""

    kind: str
    layers: int
    hidden: int
    heads: int

    def __post_init__(self) -> None:
        if self.with_heads and self.hidden % self.heads:
            raise InputError(
                f"--hidden must be a multiple of --heads {self.heads}", value=self.hidden
            )

    @property
    def with_heads(self) -> bool:
        return self.kind in ("gat", "gatv2")

    def options(self) -> list[str]:
        return [
            f"--model={self.kind}",
            f"--layers={self.layers}",
            f"--hidden={self.hidden}",
            f"--heads={self.heads}",
        ]

    def __str__(self) -> str:
        wide = f"({self.heads} x {self.hidden // self.heads})" if self.with_heads else self.hidden
        return f"{self.kind} {self.layers} x {wide}"


@dataclass(frozen=True)
class GraphSize:
    """The sizes of a graph file."""

    nodes: int
    edges: int
    features: int
    classes: int

    def __str__(self) -> str:
        return (
            f"{self.nodes:,} nodes, {self.edges:,} stored edges, {self.features} features, "
            f"{self.classes} classes"
        )


@dataclass(frozen=True)
class Bench:
    """The folders of a measurement and the limits of each of its jobs.

    Args:
        folder: for temporary files.
        kept: for graphs and partitions; those of an earlier measurement are reused.
    """

    folder: Path
    limits: Limits
    kept: Path

    def generated(self, graph: Generated) -> Path:
        """Return the file of such a graph, making it if it doesn't exist.

        Raises:
            HpcgnnError: it can't be made.
        """
        path = self.kept / f"{graph.named()}.h5"
        if not path.exists():
            self._make("generate", "sbm", path, *graph.options(), ranks=Layout(1, 1))
        return path

    def partitioned(self, graph: Path, ranks: int) -> Path:
        """Return a partition of the graph for `ranks` ranks; raises as `generated`."""
        with GraphFile(graph) as file:
            path = self.kept / f"{graph.stem}-{file.fingerprint}.p{ranks}.h5"
        if not path.exists():
            self._make("partition", graph, "-o", path, ranks=Layout(ranks, 1))
        return path

    def weights(self, graph: Path, shape: ModelShape, seed: int) -> dict[str, np.ndarray]:
        """Return the initial weights for any number of ranks, by PyTorch Geometric's names."""
        run, file = self.fresh("weights"), self.fresh("weights.pt")
        self._make(
            "train",
            self.partitioned(graph, 1),
            *shape.options(),
            "--epochs=0",
            f"--seed={seed}",
            f"--run-dir={run}",
            ranks=Layout(1, 1),
        )
        export(run, file)
        state = torch.load(file, weights_only=True)
        return {name: value.numpy() for name, value in state.items()}

    def write_problem(
        self, graph: Path, shape: ModelShape, settings: dict[str, object], seed: int
    ) -> Path:
        """Write a folder that peers can read without hpcgnn; see `peer.GivenProblem`."""
        folder = self.fresh("problem")
        folder.mkdir()
        with GraphFile(graph) as file:
            _write_arrays(file, folder)
            sizes = {"features": file.num_features, "classes": file.num_classes}
        np.savez(folder / "weights.npz", **self.weights(graph, shape, seed))  # type: ignore[arg-type]
        model = {
            "model": shape.kind,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "heads": shape.heads,
        }
        content = {**model, **sizes, **settings}
        (folder / "problem.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    def fresh(self, name: str) -> Path:
        """Return an unused path in the folder."""
        stem, dot, ending = name.partition(".")
        numbered = (self.folder / f"{stem}-{n}{dot}{ending}" for n in itertools.count())
        return next(path for path in numbered if not path.exists())

    def _make(self, verb: str, *arguments: object, ranks: Layout) -> None:
        warn(f"prepares: {verb}")
        ended = job.ours([verb, *arguments], ranks, self.limits)
        if ended.problem is not None:
            raise HpcgnnError(f"bench: {verb} on {ranks}: {ended.problem}")


def size_of(graph: Path) -> GraphSize:
    """Return the sizes of a graph that peers can train on.

    Raises:
        InputError: they can't, or it has data that peers would ignore and hpcgnn would not.
    """
    with GraphFile(graph) as file:
        lacks = {
            "dense features": file.sparse or not file.num_features,
            "one class per node": file.multilabel or not file.num_classes,
            "a split": not file.num_splits,
        }
        more = {
            "weights": file.weighted,
            "relations": bool(file.num_relations),
            "edge features": bool(file.edge_width),
        }
        if found := [name for name, lacking in lacks.items() if lacking]:
            raise InputError(f"bench takes graphs with {' and '.join(found)}", file=graph)
        if found := [name for name, has in more.items() if has]:
            text = " and ".join(found)
            raise InputError(
                f"bench takes graphs without {text}, which the peers would ignore", file=graph
            )
        return GraphSize(file.num_nodes, file.num_edges, file.num_features, file.num_classes)


def _write_arrays(file: GraphFile, folder: Path) -> None:
    rows = file.num_nodes
    nodes = file.read_nodes(0, rows, ("features", "labels", "split"))
    if nodes.labels is None or nodes.split is None:
        raise InputError("bench takes graphs with labels and a split", file=file.path)
    labels, split = nodes.labels, nodes.split[:, 0]
    np.save(folder / "pointer.npy", file.read_indptr(0, rows))
    np.save(folder / "source.npy", file.read_sources(0, rows))
    np.save(folder / "features.npy", np.asarray(nodes.features, np.float32))
    np.save(folder / "labels.npy", labels)
    for name, kind in (("train", TRAIN), ("valid", VALID)):
        np.save(folder / f"{name}.npy", np.flatnonzero((split == kind) & (labels >= 0)))


def layouts(texts: Sequence[str]) -> list[Layout]:
    """Return the requested layouts, each once.

    Raises:
        InputError: a text is not a layout.
    """
    return list(dict.fromkeys(Layout.parse(text) for text in texts))
