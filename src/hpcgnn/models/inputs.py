"""What the first layer reads: features, learned embeddings, features per type, known labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.linear import Embedding, Linear, NodeFeatures
from hpcgnn.sar.products import dense_rows

_LABEL_STREAM = 1 << 20  # tells the choice of input labels apart from dropout masks


class FeatureInput(torch.nn.Module):
    """The graph's own features."""

    def __init__(self, graph: PartitionedGraph) -> None:
        super().__init__()
        if graph.features is None:
            raise InputError("the graph has no node features; give --embedding WIDTH to learn some")
        self.width = int(graph.features.shape[1])

    def forward(self, graph: PartitionedGraph) -> NodeFeatures:
        if graph.features is None:
            raise InputError("the graph has no node features")
        return graph.features


class EmbeddingInput(torch.nn.Module):
    """Learned rows, beside the graph's features, made dense, where it has some."""

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
    """A linear map of each node type's own features to one width; other types learn embeddings."""

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
    """Beside other input, the labels of some training nodes (Wang et al. 2021, UniMP).

    While training, a share of the training nodes shows its label and the rest is the target, drawn
    anew each epoch from seed, epoch and node id; afterwards all training labels are shown.
    """

    def __init__(self, inner: torch.nn.Module, num_classes: int, share: float) -> None:
        super().__init__()
        self.inner, self.num_classes, self.share = inner, num_classes, share
        self.width = int(inner.width) + num_classes  # type: ignore[arg-type]

    def shown(self, graph: PartitionedGraph) -> Tensor:
        """Which local nodes show their label now: bool `[n]`."""
        if graph.labels is None or graph.train_mask is None or graph.labels.dim() != 1:
            raise InputError("--labels-as-input needs one class per node and a split")
        candidates = graph.train_mask & (graph.labels >= 0)
        if not self.training:
            return candidates
        ones_N1 = torch.ones(graph.num_local_nodes, 1, device=candidates.device)
        drawn_N1 = torch.empty_like(ones_N1)
        kernels.dropout_nodes(
            ones_N1,
            drawn_N1,
            graph.node_ids,
            p=1 - self.share,
            seed=graph.seed,
            epoch=graph.epoch,
            layer=_LABEL_STREAM,
        )
        return candidates & (drawn_N1[:, 0] > 0)

    def forward(self, graph: PartitionedGraph) -> Tensor:
        x_NF = self.inner(graph)
        if not isinstance(x_NF, Tensor):
            raise InputError("--labels-as-input needs dense features")
        shown = self.shown(graph)
        labels = torch.where(shown, graph.labels, 0)  # type: ignore[arg-type]
        rows_NC = functional.one_hot(labels, self.num_classes).to(x_NF.dtype) * shown[:, None]
        return torch.cat([x_NF, rows_NC], dim=1)
