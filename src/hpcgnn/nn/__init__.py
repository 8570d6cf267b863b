"""Layers and models; every layer is an ordinary torch module called as `layer(graph, x)`."""

from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.embedding import Embedding
from hpcgnn.nn.gat import GATConv
from hpcgnn.nn.gatv2 import GATv2Conv
from hpcgnn.nn.gcn import GCNConv
from hpcgnn.nn.gin import GINConv
from hpcgnn.nn.linear import Linear
from hpcgnn.nn.message_passing import MessagePassing
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm
from hpcgnn.nn.propagation import APPNP, AdaptiveDepth, Pointwise, SGConv
from hpcgnn.nn.rgcn import RGCNConv
from hpcgnn.nn.sage import SAGEConv

__all__ = [
    "APPNP",
    "AdaptiveDepth",
    "BatchNorm",
    "Dropout",
    "Embedding",
    "GATConv",
    "GATv2Conv",
    "GCNConv",
    "GINConv",
    "GraphNorm",
    "LayerNorm",
    "Linear",
    "MessagePassing",
    "Pointwise",
    "RGCNConv",
    "SAGEConv",
    "SGConv",
]
