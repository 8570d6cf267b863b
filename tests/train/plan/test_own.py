"""Memory of a user's model, measured on a small graph and scaled up."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hpcgnn
from hpcgnn.cli import main
from hpcgnn.storage.write.graph_writer import GraphWriter
from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import Shape, estimate
from hpcgnn.train.plan.own import measured
from hpcgnn.train.plan.shapes import largest_of

NET = """
import torch
from hpcgnn import nn

class Net(torch.nn.Module):
    def __init__(self, graph, hidden=64):
        super().__init__()
        widths = [graph.features.shape[1], hidden, hidden, graph.num_classes]
        self.convs = torch.nn.ModuleList(nn.GATv2Conv(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, graph, x):
        for conv in self.convs[:-1]:
            x = torch.relu(conv(graph, x))
        return self.convs[-1](graph, x)

def narrow(graph):
    return Short(graph)

class Short(Net):
    def forward(self, graph, x):
        return super().forward(graph, x)[1:]
"""

READS_ALL = """
import torch
from hpcgnn import nn

class Net(torch.nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.kind = torch.nn.Embedding(2, 4)
        self.first = nn.GATConv(9, 8, edge_dim=3)
        self.second = nn.GCNConv(8, graph.num_classes)

    def forward(self, graph):
        assert all(block.weight is not None for block in graph.in_edges.blocks)
        x = torch.cat([graph.nodes["place"], self.kind(graph.nodes["kind"])], dim=1)
        return self.second(graph, self.first(graph, x))
"""


def test_own_models_get_about_the_same_estimate_as_built_in_models(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    whole = Shape(1, 200_000, 2_000_000, 32, 8, halo=0, volume=0)
    own = Config.of(model=f"{tmp_path / 'net.py'}:Net", model_args="hidden=128")
    built_in = Config.of(model="gatv2", hidden=128, heads=1, layers=3)
    memory = measured(own, whole)
    assert memory(whole).peak == pytest.approx(estimate(whole, built_in).peak, rel=0.25)
    parts = [memory(largest_of(whole, ranks)).activations for ranks in (1, 2, 4)]
    assert parts[0] > 1.7 * parts[1] > 2.9 * parts[2] > 0


def test_plan_names_what_it_can_not_estimate_for_own_models(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    size = ["--nodes", "50000", "--edges", "500000", "--features", "8", "--classes", "3"]
    model = ["--model", f"{tmp_path / 'net.py'}:Net", "--machine", "perlmutter-cpu"]
    assert main.main(["plan", *size, *model, "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["fits"] and plan["sent_bytes"] is plan["epoch_seconds"] is None
    assert main.main(["plan", *size, *model]) == 0
    assert "not known before it runs" in capsys.readouterr().out
    assert main.main(["plan", *size, "--model", f"{tmp_path / 'net.py'}:narrow"]) == 2
    assert "must return one row per node" in capsys.readouterr().err


@pytest.mark.parametrize("whole", [True, False], ids=["graph", "partition"])
def test_a_model_that_reads_edges_and_named_arrays_is_planned(comm, tmp_path, capsys, whole):
    (tmp_path / "net.py").write_text(READS_ALL)
    path = tmp_path / "graph.h5"
    with GraphWriter(path, num_nodes=40, config={}) as writer:
        writer.append_rows(
            np.full(40, 3),
            np.arange(120) % 40,
            weight=np.ones(120, np.float32),
            edge_features=np.ones((120, 3), np.float32),
        )
        writer.append_labels(np.arange(40) % 4)
        writer.append_split(np.arange(40) % 3 + 1)
        writer.append_array("place", np.ones((40, 5), np.float32))
        writer.append_array("kind", np.arange(40) % 2)
    if not whole:
        path = tmp_path / "parts.h5"
        hpcgnn.partition_graph(comm, tmp_path / "graph.h5", 2, "random", path)
    assert main.main(["plan", str(path), "--model", f"{tmp_path / 'net.py'}:Net"]) == 0
    shown = capsys.readouterr().out
    assert "peak above imports" in shown
    assert ("taken to have its reverse" in shown) == whole  # a partition file says whether they do
