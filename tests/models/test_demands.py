"""Inputs of a graph that a model doesn't use are named once, and --ignore removes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcgnn.errors import InputError
from hpcgnn.models.build import build_model
from hpcgnn.models.demands import EDGE_READERS, Content, content_of, has_neighbours, note
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.unread import note_on_layers
from hpcgnn.nn import GATConv, GCNConv, GINEConv, MessagePassing, RGCNConv, SAGEConv
from hpcgnn.tasks import MultiClass
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.optimisation import configure
from hpcgnn.train.trainer import Trainer
from tests.graphs import distribute, random_graph

EVERYTHING = Content(
    weights=True, edge_width=2, relations=True, types=True, features=True, typed_features=False
)
WEIGHTED = ("gcn", "sgc", "appnp", "dagnn")


def rich(comm):
    whole = random_graph(30, 90, 4, weighted=True, num_relations=2, edge_width=2)
    return distribute(whole, comm)


@pytest.mark.parametrize("model", ["sage", "gin", "rgcn", *EDGE_READERS, *WEIGHTED])
def test_each_model_reads_the_inputs_that_it_supports(model):
    unused = set(EVERYTHING.unused(ModelSettings(kind=model)))
    assert ("weights" in unused) == (model not in WEIGHTED)
    assert ("edge-features" in unused) == (model not in EDGE_READERS)
    assert ("relations" in unused) == (model not in ("rgcn", "rgat"))
    assert "types" in unused and "features" not in unused


def test_one_note_names_unused_inputs_and_how_to_silence_it():
    settings = ModelSettings(ignore="types")
    unused = EVERYTHING.unused(settings)
    assert unused == ["weights", "edge-features", "relations"]
    assert note(unused, settings) == (
        "note: edge weights, edge features and relations of the graph are not used by --model "
        "sage; --ignore edge-features,relations,types,weights hides this note"
    )
    assert not EVERYTHING.unused(ModelSettings(ignore="weights,edge-features,relations,types"))
    assert Content(False, 0, False, False, True, False).unused(settings) == []


@pytest.mark.parametrize(
    ("layers", "unread"),
    [
        ([SAGEConv(2, 2)], "edge weights, edge features and relations"),
        ([torch.nn.Sequential(GCNConv(2, 2)), SAGEConv(2, 2)], "edge features and relations"),
        ([GATConv(2, 2)], "edge weights, edge features and relations"),
        ([GATConv(2, 2, edge_dim=2), RGCNConv(2, 2, 2)], "edge weights"),
        ([GINEConv(torch.nn.Linear(2, 2)), GCNConv(2, 2), RGCNConv(2, 2, 2)], ""),
        ([SAGEConv(2, 2), MessagePassing()], ""),  # which may read anything
        ([torch.nn.Linear(2, 2)], ""),
    ],
)
def test_layers_of_a_user_s_model_that_read_no_edge_data_are_named(layers, unread):
    said = note_on_layers(EVERYTHING, torch.nn.ModuleList(layers))
    assert said.removeprefix("note: ").partition(" of the graph are not read")[0] == unread
    assert note_on_layers(Content(False, 0, False, True, True, False), layers[0]) == ""


@pytest.mark.mpi
def test_trainer_names_edge_data_that_the_model_does_not_read(comm, shared_path, capsys):
    Trainer(rich(comm), SAGEConv(5, 3), MultiClass(3), run_dir=shared_path)
    said = "edge weights, edge features and relations of the graph are not read by the model's"
    assert (said in capsys.readouterr().out) == (comm.rank == 0)


@pytest.mark.parametrize("value", ["weight", "", "weights,", "none,weights"])
def test_unknown_words_are_refused(value):
    with pytest.raises(InputError, match="--ignore takes weights, edge-features"):
        Config.of(ignore=value)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ([], False),
        ([(k, k) for k in range(7)], False),
        ([(3, 3), (3, 3), (5, 5)], False),
        ([(0, 0), (0, 6)], True),
        ([(3, 3), (2, 3), (3, 4)], True),
        ([(k, k) for k in range(7)] * 2, False),
        ([(k, k) for k in range(7)] + [(0, 1)], True),
    ],
)
def test_a_graph_of_self_loops_alone_is_noticed(comm, edges, found):
    source, target = np.array(sorted(edges, key=lambda edge: edge[::-1]), int).reshape(-1, 2).T
    whole = replace(random_graph(7, 0, 2), source=source, target=target)
    assert has_neighbours(distribute(whole, comm)) == found


@pytest.mark.mpi
def test_ignored_inputs_are_removed(comm):
    graph = rich(comm)
    assert content_of(graph) == Content(True, 2, True, False, True, False)
    graph = configure(graph, Config.of(ignore="weights,edge-features,relations,types"))
    assert content_of(graph) == Content(False, 0, False, False, True, False)
    for model, kind in (("rgcn", "relations"), ("rgat", "relations"), ("gine", "edge-features")):
        with pytest.raises(InputError, match=f"{model} reads {kind.replace('-', ' ')}"):
            configure(graph, Config.of(model=model, ignore=kind))
    graph = replace(graph, typed_features={0: torch.ones(1, 1)})
    with pytest.raises(InputError, match="by node type"):
        configure(graph, Config.of(ignore="types"))


@pytest.mark.mpi
@pytest.mark.parametrize("model", ["gat", "gatv2", "transformer", "rgat"])
def test_edge_features_reach_attention(comm, model):
    """They change outputs and gradients; with --ignore edge-features they have no effect."""
    for ignore, width in (("none", 2), ("edge-features", None)):
        graph, config = rich(comm), Config.of(model=model, layers=2, hidden=8, ignore=ignore)
        graph = configure(graph, config)
        built = build_model(config.model, graph, 3, seed=0)
        assert [conv.edge_dim for conv in built.stack.convs] == [width, width]
        built(graph).square().sum().backward()
        for conv in built.stack.convs:
            assert (conv.lin_edge is None) == (width is None)
            if conv.lin_edge is not None:
                assert comm.allreduce(conv.lin_edge.weight.grad).any()


@pytest.mark.mpi
def test_ignored_weights_count_as_ones(comm, shared_path):
    losses = []
    for weighted, ignore in ((True, "weights"), (False, "none"), (True, "none")):
        whole = random_graph(30, 90, 4, weighted=True)
        whole.weight = whole.weight if weighted else None
        config = Config.of(model="gcn", layers=2, hidden=8, epochs=1, ignore=ignore)
        trainer = configured_trainer(
            distribute(whole, comm), config, shared_path / f"{weighted}.{ignore}"
        )
        losses.append(trainer._epoch(1)["loss"])
        trainer.store.close()
    assert losses[0] == losses[1] != losses[2]
