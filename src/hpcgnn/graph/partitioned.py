"""One rank's part of a graph, as torch tensors.

Block (r, s) holds the edges from part s into part r. Rank r keeps all blocks (r, *); the features
of part s that block (r, s) reads are the *halo rows* from s, in the order of s's *send list*.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import counted
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.features import HostRows, SparseRows
from hpcgnn.graph.kinds import KindNames
from hpcgnn.kernels.block import Block, Derived
from hpcgnn.kernels.seal import Seal

_OF_EDGES = ("weight", "relation", "features")
_OF_BLOCKS = ("rows", "begin", "end", "columns", *_OF_EDGES)


@dataclass(frozen=True, eq=False)
class EdgeBlocks(Derived):
    """All edges into one part, a block per source part, with both exchange lists.

    `send_rows[p]` (int32) are the local rows whose features part p reads; the block of peer s has
    `blocks[s].num_columns` halo rows, in the order of s's send list for this rank.
    """

    rank: int
    blocks: list[Block]
    send_rows: list[Tensor]
    _seal: Seal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arrays: dict[str, Tensor | None]
        arrays = {f"send_rows[{peer}]": rows for peer, rows in enumerate(self.send_rows)}
        for peer, block in enumerate(self.blocks):
            arrays |= {f"blocks[{peer}].{name}": getattr(block, name, None) for name in _OF_BLOCKS}
        # Of the edges between local nodes; the versions of the others have to do.
        compared = [f"blocks[{self.rank}].{name}" for name in ("columns", *_OF_EDGES)]
        object.__setattr__(self, "_seal", Seal(arrays, compared))

    def changed(self) -> str | None:
        """Return the name of an array that was changed in place, or None."""
        return self._seal.changed()

    @property
    def num_parts(self) -> int:
        return len(self.blocks)

    def to(self, device: torch.device | str) -> EdgeBlocks:
        return EdgeBlocks(
            self.rank,
            [block.to(device) for block in self.blocks],
            [rows.to(device) for rows in self.send_rows],
        )


_ELSEWHERE = {  # by names of PyTorch Geometric's `Data` that this class lacks or calls otherwise
    "x": "graph.features",
    "y": "graph.labels",
    "val_mask": "graph.valid_mask",
    "edge_index": "the graph itself: layers are called as layer(graph, x)",
    "edge_weight": "the graph's own: layers take it from the graph",
    "edge_attr": "hpcgnn.sar.messages.edge_features(graph)",
    "edge_type": "the graph's own: layers take it from the graph",
    "num_features": "graph.features.shape[1]",
    "num_node_features": "graph.features.shape[1]",
}


@dataclass(frozen=True, eq=False)
class PartitionedGraph(Derived):
    """One rank's part of the graph; local nodes are numbered 0 .. num_local_nodes - 1.

    It is immutable: `dataclasses.replace` makes another one. Data derived from it is requested by
    `graph.derived(...)`, computed once and kept. Layers refuse a graph whose edges or ids were
    changed in place.

    Attributes:
        features: float32 `[n, F]`, a `SparseRows`, a `HostRows`, or None.
        labels: int64 `[n]` (-1 unknown), int8 `[n, T]` for T labels at once, or values to predict,
            float32 `[n]` or `[n, W]` (NaN unknown); None without labels.
        train_mask, valid_mask, test_mask: bool `[n]`.
        nodes: named arrays of the nodes, `[n]` or `[n, W]`: `graph.nodes["position"]`.
        edge_labels: labels of the edges into local nodes, in the order of
            `sar.messages.edge_features`: int64 `[E]` (-1 unknown), int8 `[E, T]`, float32 `[E]` or
            `[E, W]` (NaN unknown).
        edge_split: int8 `[E]` in that order: 1 train, 2 valid, 3 test, 0 for messages only.
        original_ids: int64 `[n]`, the user's ids of the nodes.
        node_ids: int64 `[n]`, rows of graph.h5 (the same in every partition).
        in_edges: edges into local nodes.
        out_edges: those of the reversed graph (the same object if the graph is symmetric).
        execution: how operations on the graph run.
        kinds: the names of node types and relations, as far as the file has them.
        file: the file it was read from, which also holds the nodes' names if these are texts.
        whole, whole_rows: the graph that this one was pruned from, and its rows that are nodes here
            (int64); None for a graph from a file.
    """

    num_nodes: int
    num_edges: int
    num_classes: int
    node_ids: Tensor
    original_ids: Tensor
    in_edges: EdgeBlocks
    out_edges: EdgeBlocks
    execution: Execution
    features: Tensor | SparseRows | HostRows | None = None
    typed_features: dict[int, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    train_mask: Tensor | None = None
    valid_mask: Tensor | None = None
    test_mask: Tensor | None = None
    node_types: Tensor | None = None
    nodes: dict[str, Tensor] = field(default_factory=dict)
    edge_labels: Tensor | None = None
    edge_split: Tensor | None = None
    num_relations: int = 0
    num_types: int = 0
    graph_fingerprint: str = ""
    kinds: KindNames = field(default_factory=KindNames)
    file: Path | None = None
    whole: PartitionedGraph | None = None
    whole_rows: Tensor | None = None
    _seal: Seal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ids = {"node_ids": self.node_ids, "original_ids": self.original_ids}
        object.__setattr__(self, "_seal", Seal(ids))

    def changed(self) -> str | None:
        """Return the name of an array of ids or edges that was changed in place, or None."""
        name = self._seal.changed()
        for side in ("in_edges",) if self.symmetric else ("in_edges", "out_edges"):
            found = None if name else getattr(self, side).changed()
            name = f"{side}.{found}" if found else name
        return name

    if not TYPE_CHECKING:  # otherwise mypy would accept any name

        def __getattr__(self, name: str) -> NoReturn:
            where = _ELSEWHERE.get(name)
            said = f": it is {where}" if where else ""
            raise AttributeError(f"a PartitionedGraph has no attribute {name!r}{said}")

    def __repr__(self) -> str:
        """Return one line on the graph, this rank's part of it and the data of its nodes."""
        comm, counts = self.comm, [(self.num_classes, "class"), (self.num_relations, "relation")]
        counts += [(self.num_types, "node type")]
        has = [] if self.features is None else [counted(self.features.shape[1], "feature")]
        has += [counted(number, what) for number, what in counts if number]
        return (
            f"PartitionedGraph({counted(self.num_nodes, 'node')}, "
            f"{counted(self.num_edges, 'edge')}; part {comm.rank} of {comm.size}: "
            f"{counted(self.num_local_nodes, 'node')}; {', '.join(has) or 'no features'}; "
            f"{self.node_ids.device})"
        )

    @property
    def ring(self) -> Ring:
        return self.execution.ring

    @property
    def comm(self) -> Communicator:
        return self.execution.ring.comm

    @property
    def mode(self) -> str:
        return self.execution.mode

    @property
    def seed(self) -> int:
        return self.execution.seed

    @property
    def epoch(self) -> int:
        return self.execution.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that begins, the same on all ranks, so that dropout masks are drawn anew.

        Raises:
            InputError: `epoch` is not an integer, or is negative.
        """
        self.execution.set_epoch(epoch)

    @property
    def num_local_nodes(self) -> int:
        return self.node_ids.shape[0]

    @property
    def symmetric(self) -> bool:
        return self.out_edges is self.in_edges

    def to(self, device: torch.device | str) -> PartitionedGraph:
        """Return the same part on `device`; `original_ids` and `HostRows` stay where they are."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        in_edges, features = self.in_edges.to(device), self.features
        return replace(
            self,
            node_ids=self.node_ids.to(device),
            in_edges=in_edges,
            out_edges=in_edges if self.symmetric else self.out_edges.to(device),
            features=features.to(device) if isinstance(features, Tensor | SparseRows) else features,
            typed_features={kind: rows.to(device) for kind, rows in self.typed_features.items()},
            labels=moved(self.labels),
            train_mask=moved(self.train_mask),
            valid_mask=moved(self.valid_mask),
            test_mask=moved(self.test_mask),
            node_types=moved(self.node_types),
            nodes={name: values.to(device) for name, values in self.nodes.items()},
            edge_labels=moved(self.edge_labels),
            edge_split=moved(self.edge_split),
            whole=None if self.whole is None else self.whole.to(device),
            whole_rows=moved(self.whole_rows),
        )


def of_one_part(comm: Communicator, block: Block, **columns: Any) -> PartitionedGraph:
    """Return a graph made in memory, on one rank: `block` holds all edges, in both directions.

    Args:
        columns: further arguments of `PartitionedGraph`, `num_classes` among them.
    """
    edges = EdgeBlocks(0, [block], [torch.empty(0, dtype=torch.int32)])
    ids = torch.arange(block.num_columns)
    return PartitionedGraph(
        num_nodes=block.num_columns,
        num_edges=len(block.columns),
        node_ids=ids,
        original_ids=ids,
        in_edges=edges,
        out_edges=edges,
        execution=Execution(Ring(comm)),
        **columns,
    )
