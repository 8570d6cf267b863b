"""Stacks of residual blocks compared with PyTorch Geometric's."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.models.build import build_model
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.stack import DeepStack
from tests.graphs import distribute, random_graph
from tests.nn.test_against_pyg import compare

pytestmark = pytest.mark.mpi


class Unchanged(torch.nn.Module):
    def forward(self, x, edge_index):
        return x


class Theirs(torch.nn.Module):
    """As in DeeperGCN's example: a plain first convolution, a norm before the others and last."""

    def __init__(self, pyg: ModuleType, block: str, head: str) -> None:
        super().__init__()

        def layer(conv: torch.nn.Module, kind: str) -> torch.nn.Module:
            return pyg.DeepGCNLayer(conv, torch.nn.LayerNorm(6), torch.nn.ReLU(), kind)

        convs = [pyg.SAGEConv(6, 6) for _ in range(3 if head == "linear" else 2)]
        self.encoder = torch.nn.Linear(5, 6)
        self.blocks = torch.nn.ModuleList(layer(conv, block) for conv in convs)
        self.last = None
        if block == "res+":
            self.blocks[0] = pyg.DeepGCNLayer(convs[0], block="plain")
            self.last = layer(Unchanged(), "plain")
        self.head = torch.nn.Linear(6, 4) if head == "linear" else pyg.SAGEConv(6, 4)

    def forward(self, x, edge_index):
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x, edge_index)
        x = x if self.last is None else self.last(x, edge_index)
        is_linear = isinstance(self.head, torch.nn.Linear)
        return self.head(x) if is_linear else self.head(x, edge_index)


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("block", ["res+", "res"])
def test_stack_equals_pytorch_geometrics(comm, pyg, block, head):
    torch.manual_seed(0)
    ours = DeepStack(
        5, 6, 4, 3, lambda a, b, layer: nn.SAGEConv(a, b), block=block, norm="layer", head=head
    )
    compare(
        Theirs(pyg, block, head), ours, random_graph(40, 160), comm, ["sar", "sa"], limit64=1e-9
    )


@pytest.mark.parametrize(("block", "quiet"), [("res+", ["0", "1", "2"]), ("res", ["0", "1", "2"])])
def test_biases_removed_by_a_norm_get_no_gradient(comm, block, quiet):
    """Exactly none, in copies too; the encoder's bias acts before any norm."""
    graph = distribute(random_graph(40, 160), comm)
    settings = ModelSettings(
        kind="gcn", block=block, norm="batch", hidden=8, layers=3, head="linear", dropout=0.0
    )
    model = copy.deepcopy(build_model(settings, graph, 3, seed=0))
    model(graph).square().sum().backward()
    still = [
        name.split(".")[2]
        for name, parameter in model.named_parameters()
        if name.endswith("conv.bias") and not parameter.grad.any()
    ]
    assert still == quiet
    assert comm.allreduce(model.stack.encoder.bias.grad).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "gcn", "aggr": "max"}, "--aggr with --model gcn is auto"),
        ({"kind": "rgcn", "aggr": "max"}, "is mean, sum or auto"),
        ({"kind": "sage", "aggr": "softmax"}, "is mean, sum, max, min or auto"),
        (
            {"kind": "deeper", "residual": True},
            r"^--residual needs plain blocks, and those of --model deeper are res\+: add",
        ),
        ({"kind": "deeper", "jumping": "cat"}, "^--jumping cat needs plain blocks, and"),
        ({"block": "res", "jumping": "cat"}, r"^--jumping cat needs --block plain \(found 'res'\)"),
        ({"kind": "transformer", "hidden": 10}, "--hidden must be a multiple of --heads 4"),
    ],
)
def test_incompatible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        ModelSettings(**settings)


def test_the_aggr_setting_reaches_the_layers(comm):
    graph = distribute(random_graph(40, 160, num_relations=2, edge_width=2), comm)
    for kind in ("sage", "gin", "gine", "rgcn", "deeper"):
        model = build_model(
            ModelSettings(kind=kind, aggr="sum", hidden=8, dropout=0.0), graph, 3, seed=0
        )
        layers = [module for module in model.modules() if hasattr(module, "aggr")]
        assert len(layers) == 3 and all(layer.aggr == "sum" for layer in layers)
        assert model(graph).shape == (graph.num_local_nodes, 3)


def test_gine_needs_edge_features(comm):
    graph = distribute(random_graph(40, 160), comm)
    with pytest.raises(InputError, match="gine needs edge features"):
        build_model(ModelSettings(kind="gine"), graph, 3, seed=0)
