"""Message-passing layers compared with PyTorch Geometric's, with equal weights, in all modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mpi4py import MPI

from hpcgnn import nn
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from tests.graphs import Whole, collect, distribute, local, random_graph
from tests.nn.test_against_pyg import MODES, compare

pytestmark = pytest.mark.mpi

DEG = torch.tensor([3, 7, 9, 4, 2])
Make = Callable[[object], torch.nn.Module]


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))


def norm(lib: object, kind: str) -> torch.nn.Module:
    ours = {"batch": nn.BatchNorm, "layer": nn.LayerNorm}
    theirs = {"batch": torch.nn.BatchNorm1d, "layer": torch.nn.LayerNorm}
    return (ours if lib is nn else theirs)[kind](5)


def deep(lib, block: str, kind: str, **options):
    conv = lib.GENConv(5, 5, norm="layer", **options)
    return lib.DeepGCNLayer(conv, norm(lib, kind), torch.nn.ReLU(), block=block)


# Inputs of PyTorch Geometric's layer besides x and the edges: r relations, f edge features.
LAYERS: dict[str, tuple[str, Make]] = {
    "transformer": ("", lambda lib: lib.TransformerConv(5, 4, heads=2)),
    "transformer edges": ("f", lambda lib: lib.TransformerConv(5, 4, heads=2, edge_dim=3)),
    "transformer beta": (
        "f",
        lambda lib: lib.TransformerConv(5, 4, heads=3, concat=False, beta=True, edge_dim=3),
    ),
    "transformer alone": (
        "",
        lambda lib: lib.TransformerConv(5, 4, heads=2, root_weight=False, bias=False),
    ),
    "gine": ("f", lambda lib: lib.GINEConv(mlp(), eps=0.3, train_eps=True, edge_dim=3)),
    "gine mean": ("f", lambda lib: lib.GINEConv(mlp(), edge_dim=3, aggr="mean")),
    "gin max": ("", lambda lib: lib.GINConv(mlp(), train_eps=True, aggr="max")),
    "gin mean": ("", lambda lib: lib.GINConv(mlp(), aggr="mean")),
    "pna": (
        "",
        lambda lib: lib.PNAConv(
            5, 4, ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"], DEG
        ),
    ),
    "pna towers": (
        "f",
        lambda lib: lib.PNAConv(
            5,
            4,
            ["sum", "var", "std"],
            ["linear", "inverse_linear"],
            DEG,
            edge_dim=3,
            towers=2,
            pre_layers=2,
            post_layers=2,
            act="tanh",
            train_norm=True,
        ),
    ),
    "pna divided": (
        "",
        lambda lib: lib.PNAConv(
            5, 10, ["mean", "max"], ["identity"], DEG, towers=5, divide_input=True
        ),
    ),
    "rgat": ("r", lambda lib: lib.RGATConv(5, 4, 3, heads=2)),
    "rgat bases": (
        "rf",
        lambda lib: lib.RGATConv(5, 4, 4, num_bases=2, heads=2, edge_dim=3, concat=False),
    ),
    "rgat within": (
        "r",
        lambda lib: lib.RGATConv(
            5, 4, 3, attention_mechanism="within-relation", heads=2, mod="additive"
        ),
    ),
    "rgat product": (
        "rf",
        lambda lib: lib.RGATConv(
            5,
            4,
            3,
            attention_mode="multiplicative-self-attention",
            heads=2,
            dim=3,
            edge_dim=3,
            mod="scaled",
        ),
    ),
    "rgat f-scaled": ("r", lambda lib: lib.RGATConv(5, 4, 3, mod="f-scaled")),
    "rgat f-additive": ("r", lambda lib: lib.RGATConv(5, 4, 3, mod="f-additive", bias=False)),
    "gen": ("", lambda lib: lib.GENConv(5, 4, learn_t=True, t=0.7)),
    "gen edges": (
        "f",
        lambda lib: lib.GENConv(5, 5, norm="layer", edge_dim=3, bias=True, num_layers=3, t=2.0),
    ),
    "gen fixed weights": ("", lambda lib: lib.GENConv(5, 4, aggr="softmax_sg", norm=None)),
    "gen power": ("", lambda lib: lib.GENConv(5, 4, aggr="powermean", learn_p=True, p=1.5)),
    "gen max": (
        "",
        lambda lib: lib.GENConv(
            5, 4, aggr="max", msg_norm=True, learn_msg_scale=True, norm="layer"
        ),
    ),
    "res+": ("", lambda lib: deep(lib, "res+", "batch", learn_t=True)),
    "res": ("", lambda lib: deep(lib, "res", "layer", aggr="add")),
    "dense": ("", lambda lib: deep(lib, "dense", "batch", aggr="mean")),
    "plain": ("", lambda lib: deep(lib, "plain", "layer")),
}
ONE_OF_A_KIND = ("transformer edges", "pna towers", "rgat bases", "gen edges", "res+")


def graph_for(needs: str, nodes: int, edges: int, **options) -> tuple[Whole, list[torch.Tensor]]:
    relations, width = (3 if "r" in needs else 0), (3 if "f" in needs else 0)
    whole = random_graph(nodes, edges, num_relations=relations, edge_width=width, **options)
    given = {"r": whole.relation, "f": whole.edge_features}
    kinds = {"r": torch.int64, "f": torch.float64}
    return whole, [torch.from_numpy(given[need]).to(kinds[need]) for need in needs]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_every_mode(comm, pyg, name):
    """Also in many messages: 4 KiB buffers cut every block."""
    needs, make = LAYERS[name]
    torch.manual_seed(1)
    theirs, ours = make(pyg), make(nn)
    for key in ("w", "l1", "b1", "l2", "b2"):  # PyTorch Geometric doesn't draw all of them
        if hasattr(theirs, key):
            torch.nn.init.uniform_(getattr(theirs, key), 0.1, 1)
    few = MODES if name in ONE_OF_A_KIND else ["sar", "sa"]
    for nodes, edges, symmetric, modes in ((9, 24, False, few), (150, 900, True, few[:1])):
        whole, given = graph_for(needs, nodes, edges, symmetric=symmetric)
        compare(theirs, ours, whole, comm, modes, *given, limit64=1e-9)
        theirs.float()


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_layers_on_a_graph_with_few_edges(comm, pyg, name):
    needs, make = LAYERS[name]
    torch.manual_seed(1)
    whole, given = graph_for(needs, 9, 3)
    theirs = make(pyg)
    for key in ("w", "l1", "b1", "l2", "b2"):
        if hasattr(theirs, key):
            torch.nn.init.ones_(getattr(theirs, key))
    compare(theirs, make(nn), whole, comm, ["sar"], *given, limit64=1e-9)


DROPPING: dict[str, Callable[[], torch.nn.Module]] = {
    "transformer": lambda: nn.TransformerConv(5, 4, heads=2, dropout=0.5, layer=3),
    "rgat": lambda: nn.RGATConv(5, 4, 3, heads=2, dropout=0.5, layer=3),
    "deep": lambda: nn.DeepGCNLayer(
        nn.GENConv(5, 5, norm="layer"), nn.LayerNorm(5), dropout=0.5, layer=3
    ),
}


@pytest.mark.several_ranks
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_the_same_on_every_number_of_ranks(comm, name, mode):
    torch.manual_seed(2)
    layer = DROPPING[name]()
    whole = random_graph(60, 300, num_relations=3)
    results = []
    for ranks in (comm, Communicator(MPI.COMM_SELF)):
        graph = distribute(whole, ranks, halo_buffer=4096, mode=mode)
        graph.set_epoch(4)
        x = local(graph, whole.features).requires_grad_()
        y = layer(graph, x)
        y.square().sum().backward()
        results.append(collect(graph, torch.cat([y, x.grad], dim=1)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    whole_graph = distribute(whole, Communicator(MPI.COMM_SELF))
    kept = layer.eval()(whole_graph, local(whole_graph, whole.features))
    assert not torch.allclose(results[1][:, : kept.shape[1]], kept)


def test_degrees_are_counted_over_all_ranks(comm):
    whole = random_graph(60, 300)
    found = nn.PNAConv.get_degree_histogram(distribute(whole, comm))
    counts = torch.bincount(torch.from_numpy(whole.target), minlength=60)
    assert torch.equal(found, torch.bincount(counts))


def test_wrong_arguments_are_refused_by_name():
    graph = distribute(random_graph(9, 24), Communicator(MPI.COMM_SELF))
    refused: dict[str, Callable[[], object]] = {
        "edge_dim is 3": lambda: nn.TransformerConv(5, 4, edge_dim=3)(graph, graph.features),
        "GINEConv: edge_dim is 5": lambda: nn.GINEConv(mlp())(graph, graph.features),
        "GINEConv: edge_dim needs": lambda: nn.GINEConv(torch.nn.ReLU(), edge_dim=3),
        "GINConv: aggr must be": lambda: nn.GINConv(mlp(), aggr="softmax"),
        "aggregators must be some of": lambda: nn.PNAConv(5, 4, ["median"], ["identity"], DEG),
        "scalers must be some of": lambda: nn.PNAConv(5, 4, ["mean"], [], DEG),
        "multiples of towers": lambda: nn.PNAConv(5, 4, ["mean"], ["linear"], DEG, towers=3),
        "deg must give": lambda: nn.PNAConv(5, 4, ["mean"], ["linear"], torch.zeros(3)),
        "the graph has 0 relations": lambda: nn.RGATConv(5, 4, 3)(graph, graph.features),
        "num_blocks can only be None": lambda: nn.RGATConv(5, 4, 3, num_blocks=2),
        "RGATConv: mod can only be": lambda: nn.RGATConv(5, 4, 3, mod="halved"),
        "dim needs attention_mode": lambda: nn.RGATConv(5, 4, 3, dim=2),
        "dropout needs mod=None": lambda: nn.RGATConv(5, 4, 3, dropout=0.1, mod="scaled"),
        "GENConv: aggr must be one of": lambda: nn.GENConv(5, 4, aggr=["max", "mean"]),
        "GENConv: norm can only be": lambda: nn.GENConv(5, 4, norm="instance"),
        "only one rank's nodes": lambda: nn.DeepGCNLayer(mlp(), torch.nn.BatchNorm1d(5)),
        "ckpt_grad can only be False": lambda: nn.DeepGCNLayer(mlp(), ckpt_grad=True),
        "block can only be": lambda: nn.DeepGCNLayer(mlp(), block="highway"),
    }
    for text, make in refused.items():
        with pytest.raises(InputError, match=text):
            make()
