"""The noun everything shares: one rank's part of a graph, as torch tensors.

Block (r, s) holds the edges from part s into part r. Rank r keeps all blocks (r, *); the features
of part s that block (r, s) reads are the *halo rows* from s, in the order of s's *send list*.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.features import SparseRows
from hpcgnn.kernels.block import Block

if TYPE_CHECKING:
    from hpcgnn.comm.ring import Ring
    from hpcgnn.graph.features import HostRows


@dataclass(frozen=True)
class EdgeBlocks:
    """All edges into one part, a block per source part, with both exchange lists.

    `send_rows[p]` (int32) are the local rows whose features part p reads; the block of peer s has
    `blocks[s].num_columns` halo rows, in the order of s's send list for this rank.
    """

    rank: int
    blocks: list[Block]
    send_rows: list[Tensor]

    @property
    def num_parts(self) -> int:
        return len(self.blocks)

    def to(self, device: torch.device | str) -> EdgeBlocks:
        return EdgeBlocks(
            self.rank,
            [block.to(device) for block in self.blocks],
            [rows.to(device) for rows in self.send_rows],
        )


@dataclass
class PartitionedGraph:
    """One rank's part of the graph; local nodes are numbered 0 .. num_local_nodes - 1.

    Attributes:
        features: float32 `[n, F]`, a `SparseRows`, a `HostRows`, or None.
        labels: int64 `[n]` (-1 unknown), or int8 `[n, T]` for T labels at once; None without.
        train_mask, valid_mask, test_mask: bool `[n]`.
        original_ids: int64 `[n]`, the ids the user knows the nodes by.
        node_ids: int64 `[n]`, rows of graph.h5 (the same on every partition).
        in_edges: edges into local nodes; out_edges: the same of the reversed graph (the very same
            object where the graph is symmetric).
        seed, epoch: key of the dropout masks; `set_epoch` at the start of each epoch.
        mode: `sar` (remote data is freed and rebuilt), `sa` (kept for backward), or `oneshot` (one
            exchange with buffers as large as it needs).
        fewest_rows: sums between parts travel as whichever rows are fewest, see `sar.relay`.
        narrow_first: weights multiply before a sum where that makes its rows narrower.
        cache_first: sums of the constant input features are computed once and kept.
    """

    num_nodes: int
    num_edges: int
    num_classes: int
    node_ids: Tensor
    original_ids: Tensor
    in_edges: EdgeBlocks
    out_edges: EdgeBlocks
    ring: Ring
    features: Tensor | SparseRows | HostRows | None = None
    typed_features: dict[int, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    train_mask: Tensor | None = None
    valid_mask: Tensor | None = None
    test_mask: Tensor | None = None
    node_types: Tensor | None = None
    num_relations: int = 0
    num_types: int = 0
    graph_fingerprint: str = ""
    seed: int = 0
    epoch: int = 0
    mode: str = "sar"
    fewest_rows: bool = True
    narrow_first: bool = True
    cache_first: bool = True
    cache: dict[object, object] = field(default_factory=dict, repr=False)
    epoch_is_set: bool = False
    drawn: set[int] = field(default_factory=set, repr=False)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, the same on all ranks: dropout masks are drawn anew.

        Raises:
            InputError: `epoch` is no integer, or negative.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise InputError("an epoch must be an integer of at least 0", value=epoch)
        self.epoch, self.epoch_is_set = epoch, True

    def mask_key(self, layer: int) -> tuple[int, int, int]:
        """Seed, epoch and layer of a dropout mask; warns once of masks that never change."""
        if not self.epoch_is_set and self.epoch == 0:
            if layer in self.drawn:
                self.epoch_is_set = True
                warnings.warn(
                    "dropout draws the same mask again, since the epoch was never set: call "
                    "graph.set_epoch(epoch) at the start of each epoch",
                    stacklevel=4,
                )
            self.drawn.add(layer)
        return self.seed, self.epoch, layer

    @property
    def num_local_nodes(self) -> int:
        return self.node_ids.shape[0]

    @property
    def symmetric(self) -> bool:
        return self.out_edges is self.in_edges

    def to(self, device: torch.device | str) -> PartitionedGraph:
        """The same part on `device`, without what was derived from it.

        `original_ids` and `HostRows` stay where they are.
        """

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
            cache={},
            drawn=set(),
        )
