"""Inputs of the first layer: features, learned embeddings, features per type, known labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import no_features
from hpcgnn.nn.gradients import copied_to
from hpcgnn.nn.linear import Embedding, Linear, NodeFeatures
from hpcgnn.sar.products import dense_rows

_LABEL_STREAM = 1 << 20  # distinguishes the choice of input labels from dropout masks


class FeatureInput(torch.nn.Module):
    """The graph's own features."""

    def __init__(self, graph: PartitionedGraph) -> None:
        super().__init__()
        if graph.features is None:
            raise no_features()
        self.width = int(graph.features.shape[1])

    def forward(self, graph: PartitionedGraph) -> NodeFeatures:
        if graph.features is None:
            raise InputError("the graph has no node features")
        return graph.features


class EmbeddingInput(torch.nn.Module):
    """Learned embeddings, concatenated with the graph's features, made dense, if it has any."""

    def __init__(self, graph: PartitionedGraph, width: int, seed: int) -> None:
        super().__init__()
        self.embedding = Embedding(graph, width, seed)
        own = 0 if graph.features is None else int(graph.features.shape[1])
        self.width = width + own

    def forward(self, graph: PartitionedGraph) -> Tensor:
        rows_NF = self.embedding(graph)
        if graph.features is None:
            return rows_NF
        return torch.cat([dense_rows(graph.features, rows_NF.device), rows_NF], dim=1)


class TypedInput(torch.nn.Module):
    """A linear map of each node type's features to one width; embeddings for types without any."""

    def __init__(self, graph: PartitionedGraph, width: int, seed: int) -> None:
        super().__init__()
        if graph.node_types is None:
            raise InputError("the graph has features per node type but no node types")
        self.width = width
        self.maps = torch.nn.ModuleDict(
            {
                str(kind): Linear(rows.shape[1], width)
                for kind, rows in sorted(graph.typed_features.items())
            }
        )
        self.embedding = Embedding(graph, width, seed)

    def forward(self, graph: PartitionedGraph) -> Tensor:
        rows_NF: Tensor = self.embedding(graph)
        kinds = graph.node_types
        if kinds is None:
            raise InputError("the graph has no node types")
        for name, linear in self.maps.items():
            here = torch.nonzero(torch.eq(kinds, int(name))).flatten()
            mapped_KF = linear(graph.typed_features[int(name)])
            rows_NF = rows_NF.index_copy(0, here, mapped_KF.to(rows_NF.dtype))
        return rows_NF


class LabelInput(torch.nn.Module):
    """Another input, concatenated with labels of training nodes (Wang et al. 2021, UniMP).

    While training, a share of the training nodes shows its labels and the rest is the target, drawn
    again each epoch from seed, epoch and node id; in evaluation all training labels are shown.
    """

    def __init__(self, inner: torch.nn.Module, num_classes: int, share: float) -> None:
        super().__init__()
        self.inner, self.num_classes, self.share = inner, num_classes, share
        self.width = int(inner.width) + num_classes  # type: ignore[arg-type]

    def shown(self, graph: PartitionedGraph) -> Tensor:
        """Return which local nodes show their label now: bool `[n]`."""
        candidates = _candidates(graph)
        if not self.training:
            return candidates
        return candidates & self._drawn(graph, graph.node_ids)

    def hidden(self, graph: PartitionedGraph, rows: Tensor) -> Tensor:
        """Return those of the local rows (int64) that do not show their label now.

        Computed on the host, which draws the same numbers, so that it need not wait for a GPU.
        """
        if rows.device.type == "cpu":
            return rows[~self.shown(graph)[rows]]
        known = graph.derived(_HostLabels(_changes(graph.labels), _changes(graph.train_mask)))
        own = known.rows(rows)
        shown = known.candidates[own]
        if self.training:
            shown &= self._drawn(graph, known.node_ids[own])
        return copied_to(own[~shown], rows.device)

    def _drawn(self, graph: PartitionedGraph, node_ids: Tensor) -> Tensor:
        ones_N1 = torch.ones(len(node_ids), 1, device=node_ids.device)
        drawn_N1 = torch.empty_like(ones_N1)
        kernels.dropout_nodes(
            ones_N1,
            drawn_N1,
            node_ids,
            p=1 - self.share,
            seed=graph.seed,
            epoch=graph.epoch,
            layer=_LABEL_STREAM,
        )
        return drawn_N1[:, 0] > 0

    def forward(self, graph: PartitionedGraph) -> Tensor:
        x_NF = self.inner(graph)
        if not isinstance(x_NF, Tensor):
            raise InputError("--labels-as-input needs dense features")
        shown = self.shown(graph)
        labels = torch.where(shown, graph.labels, 0)  # type: ignore[arg-type]
        rows_NY = functional.one_hot(labels, self.num_classes).to(x_NF.dtype) * shown[:, None]
        return torch.cat([x_NF, rows_NY], dim=1)


def _candidates(graph: PartitionedGraph) -> Tensor:
    """Return which nodes' labels may be shown: bool `[n]`."""
    if graph.labels is None or graph.train_mask is None or graph.labels.dim() != 1:
        raise InputError("--labels-as-input needs one class per node and a split")
    return graph.train_mask & (graph.labels >= 0)


class _OnHost:
    """The data that `LabelInput.hidden` reads, on the host."""

    def __init__(self, graph: PartitionedGraph) -> None:
        self.candidates, self.node_ids = _candidates(graph).cpu(), graph.node_ids.cpu()
        self._given: Tensor | None = None
        self._rows = torch.empty(0, dtype=torch.int64)

    def rows(self, given: Tensor) -> Tensor:
        """Return the given rows on the host; they are the same each epoch, so copied once."""
        if self._given is not given:
            self._given, self._rows = given, given.cpu()
        return self._rows


def _changes(values: Tensor | None) -> int:
    """Return how often the values were changed in place."""
    return 0 if values is None or values.is_inference() else values._version


@dataclass(frozen=True)
class _HostLabels:
    """The host's copy of labels and masks, for each number of changes in place."""

    labels: int
    mask: int

    def build(self, graph: PartitionedGraph) -> _OnHost:
        return _OnHost(graph)
