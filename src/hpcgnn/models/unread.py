"""The graph's data that the layers of a user's model do not read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpcgnn import nn
from hpcgnn.models.demands import Content, in_words

_WEIGHTED = (nn.GCNConv, nn.SGConv, nn.APPNP, nn.AdaptiveDepth)
_RELATIONAL = (nn.RGCNConv, nn.RGATConv)
_WITH_EDGES = (nn.GATConv, nn.GATv2Conv, nn.TransformerConv, nn.GINEConv, nn.PNAConv, nn.GENConv)
_CONVOLUTIONS = (*_WEIGHTED, *_RELATIONAL, *_WITH_EDGES, nn.SAGEConv, nn.GINConv)
_OF_THE_USER = (nn.MessagePassing, nn.EdgeMessagePassing)


def note_on_layers(content: Content, model: torch.nn.Module) -> str:
    """Return a line that names data of the edges that no convolution of the model reads, or "".

    Messages of the user's own may read anything, so that nothing is said of a model with these, nor
    of one without any convolution of this package.
    """
    modules = list(model.modules())
    layers = [module for module in modules if isinstance(module, _CONVOLUTIONS)]
    if not layers or any(isinstance(module, _OF_THE_USER) for module in modules):
        return ""
    read = {kind for layer in layers for kind in _read_by(layer)}
    held = {
        "weights": content.weights,
        "edge-features": content.edge_width > 0,
        "relations": content.relations,
    }
    unread = [kind for kind, there in held.items() if there and kind not in read]
    if not unread:
        return ""
    names = ", ".join(sorted({type(layer).__name__ for layer in layers}))
    return f"note: {in_words(unread)} of the graph are not read by the model's layers: {names}"


def _read_by(layer: torch.nn.Module) -> Iterator[str]:
    if isinstance(layer, _WEIGHTED):
        yield "weights"
    if isinstance(layer, _RELATIONAL):
        yield "relations"
    if isinstance(layer, nn.GINEConv) or getattr(layer, "edge_dim", None) is not None:
        yield "edge-features"
