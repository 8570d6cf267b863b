"""A part of a graph is immutable; how to run on it is one object, shared with pruned graphs."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import message_flow
from hpcgnn.sar.aggregation import in_degrees
from hpcgnn.train.config import Config
from hpcgnn.train.optimisation import configure
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi


@pytest.fixture
def graph(comm):
    return distribute(random_graph(60, 120, seed=2), comm)


def test_no_field_can_be_set(graph):
    for entry in fields(PartitionedGraph):
        with pytest.raises(FrozenInstanceError):
            setattr(graph, entry.name, None)


@pytest.mark.parametrize("name", ["ring", "mode", "seed", "epoch", "comm"])
def test_execution_is_read_only_on_the_graph(graph, name):
    owner = graph.ring if name == "comm" else graph.execution
    assert getattr(graph, name) is getattr(owner, name)
    with pytest.raises(AttributeError):
        setattr(graph, name, None)


def test_only_set_epoch_changes_the_epoch(graph):
    with pytest.raises(AttributeError):
        graph.execution.epoch = 3
    other = replace(graph, features=None)
    graph.set_epoch(3)
    assert (graph.epoch, other.epoch) == (3, 3)


@dataclass(frozen=True)
class Doubled:
    times: int

    def build(self, graph: PartitionedGraph) -> torch.Tensor:
        return graph.node_ids * self.times


def test_derived_objects_are_cached_by_value_and_not_copied_to_new_graphs(graph):
    first = graph.derived(Doubled(2))
    assert graph.derived(Doubled(2)) is first and graph.derived(Doubled(3)) is not first
    assert replace(graph, labels=None).derived(Doubled(2)) is not first


def test_a_pruned_graph_runs_like_the_whole_one(graph):
    """It always has the same epoch, and its degrees count the pruned edges."""
    target_N = graph.node_ids < 2
    steps = [step for step in message_flow(graph, target_N, [1, 1, 1]) if step is not None]
    assert steps
    graph.set_epoch(7)
    for step in steps:
        assert step.graph.epoch == step.after.epoch == 7
        assert step.graph.whole is graph and step.after.whole is None
        assert torch.equal(in_degrees(step.graph), in_degrees(graph)[step.graph.whole_rows])


def test_a_configuration_leaves_the_graph_as_it_was(graph):
    found = configure(graph, Config.of(mode="sa", seed=5, fewest_rows=False, ignore="types"))
    assert (found.mode, found.seed, found.execution.fewest_rows) == ("sa", 5, False)
    assert (graph.mode, graph.seed) == ("sar", 0) and graph.execution.fewest_rows
    assert isinstance(found.execution, Execution) and found.ring is graph.ring


@pytest.mark.parametrize(
    ("name", "said"), [("x", "it is graph.features"), ("val_mask", "it is graph.valid_mask")]
)
def test_names_of_other_libraries_are_answered_with_ours(graph, name, said):
    with pytest.raises(AttributeError, match=f"no attribute '{name}': {said}"):
        getattr(graph, name)
    assert not hasattr(graph, "zzz")


@pytest.mark.parametrize("side", ["in_edges", "out_edges"])
@pytest.mark.parametrize("name", ["weight", "relation", "features", "columns", "send_rows"])
def test_layers_refuse_a_graph_that_was_changed_in_place(comm, side, name):
    """What was derived from it, and the edges of the other direction, don't follow."""
    whole = random_graph(60, 200, weighted=True, num_relations=2, edge_width=2)
    graph, layer = distribute(whole, comm), nn.GCNConv(5, 2)
    layer(graph, graph.features)
    edges = getattr(graph, side)
    array = edges.send_rows[comm.rank] if name == "send_rows" else None
    array = getattr(edges.blocks[comm.rank], name) if array is None else array
    array.mul_(2)
    with pytest.raises(InputError, match=rf"graph\.{side}\..*{name}.* was changed in place"):
        layer(graph, graph.features)


@pytest.mark.parametrize("how", ["data", "numpy"])
def test_changes_of_edges_that_torch_does_not_count_are_found(comm, how):
    graph = distribute(random_graph(60, 200, weighted=True), comm)
    layer, weight = nn.SAGEConv(5, 2), graph.in_edges.blocks[comm.rank].weight
    layer(graph, graph.features)
    if not len(weight):
        weight.mul_(2)
    elif how == "data":
        weight.data.mul_(2)
    else:
        weight.numpy()[:] *= 2
    with pytest.raises(InputError, match="weight was changed in place"):
        layer(graph, graph.features)


def test_copied_edges_may_be_used(graph):
    edges = copy.deepcopy(graph.in_edges)
    graph.in_edges.blocks[0].columns.mul_(1)
    assert graph.changed() and edges.changed() is None
    edges.blocks[0].columns.mul_(1)
    assert edges.changed() == "blocks[0].columns"
