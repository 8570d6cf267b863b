"""Layers and models; every layer is an ordinary torch module called as `layer(graph, x)`."""

from hpcgnn.nn.deep_gcn import DeepGCNLayer
from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.edge_message_passing import EdgeMessagePassing
from hpcgnn.nn.embedding import Embedding
from hpcgnn.nn.gat import GATConv
from hpcgnn.nn.gatv2 import GATv2Conv
from hpcgnn.nn.gcn import GCNConv
from hpcgnn.nn.gen import GENConv, MessageNorm
from hpcgnn.nn.gin import GINConv
from hpcgnn.nn.gine import GINEConv
from hpcgnn.nn.linear import Linear
from hpcgnn.nn.message_passing import MessagePassing
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm
from hpcgnn.nn.pna import PNAConv
from hpcgnn.nn.propagation import APPNP, AdaptiveDepth, Pointwise, SGConv
from hpcgnn.nn.rgat import RGATConv
from hpcgnn.nn.rgcn import RGCNConv
from hpcgnn.nn.sage import SAGEConv
from hpcgnn.nn.transformer import TransformerConv

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
]
