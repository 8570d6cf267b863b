"""Layers and models; every layer is an ordinary torch module called as `layer(graph, x)`."""

from hpcgnn.nn.attention import GATConv, GATv2Conv
from hpcgnn.nn.deep_gcn import DeepGCNLayer, GENConv, MessageNorm
from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.gcn import GCNConv
from hpcgnn.nn.gin import GINConv, GINEConv
from hpcgnn.nn.linear import Embedding, Linear
from hpcgnn.nn.message_passing import EdgeMessagePassing, MessagePassing
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm
from hpcgnn.nn.pna import PNAConv
from hpcgnn.nn.propagation import APPNP, AdaptiveDepth, Pointwise, SGConv
from hpcgnn.nn.relational import RGATConv, RGCNConv
from hpcgnn.nn.sage import SAGEConv
from hpcgnn.nn.transformer import TransformerConv
from hpcgnn.sar.recompute import recomputed

__all__ = [
    "APPNP",
    "AdaptiveDepth",
    "BatchNorm",
    "DeepGCNLayer",
    "Dropout",
    "EdgeMessagePassing",
    "Embedding",
    "GATConv",
    "GATv2Conv",
    "GCNConv",
    "GENConv",
    "GINConv",
    "GINEConv",
    "GraphNorm",
    "LayerNorm",
    "Linear",
    "MessageNorm",
    "MessagePassing",
    "PNAConv",
    "Pointwise",
    "RGATConv",
    "RGCNConv",
    "SAGEConv",
    "SGConv",
    "TransformerConv",
    "recomputed",
]
