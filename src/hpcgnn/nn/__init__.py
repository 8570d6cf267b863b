"""Layers and models; every layer is an ordinary torch module called as `layer(graph, x)`."""

from hpcgnn.nn.dropout import Dropout
from hpcgnn.nn.gat import GATConv
from hpcgnn.nn.gcn import GCNConv
from hpcgnn.nn.linear import Linear
from hpcgnn.nn.message_passing import MessagePassing
from hpcgnn.nn.model import Stack
from hpcgnn.nn.norm import BatchNorm, GraphNorm, LayerNorm
from hpcgnn.nn.sage import SAGEConv

__all__ = [
    "BatchNorm",
    "Dropout",
    "GATConv",
    "GCNConv",
    "GraphNorm",
    "LayerNorm",
    "Linear",
    "MessagePassing",
    "SAGEConv",
    "Stack",
]
