"""Link prediction over the ranks: draws, loss and ranking compared with one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.places import EdgeEnds, FindPlaces
from hpcgnn.sar.messages import edge_features
from hpcgnn.tasks import EdgeTask, LinkPrediction, PairMLP, Regression, find_task
from hpcgnn.tasks.build import stored_task
from hpcgnn.tasks.links import KnownEdges, false_targets
from hpcgnn.tasks.pairs import ids_of_pairs, numbered
from hpcgnn.tasks.settings import TaskSettings
from tests.graphs import collect, distribute, local, random_graph
from tests.late import Late

truth = Late("sklearn.metrics")

pytestmark = pytest.mark.mpi
WHOLE = random_graph(40, 150, seed=9)
KEYS = WHOLE.target * 40 + WHOLE.source
SPLIT = (KEYS % 7 % 4).astype(np.int8)  # parallel edges in the same way
ORDER = np.lexsort((WHOLE.source, WHOLE.target))


def split_graph(comm):
    whole = replace(WHOLE, edge_features=SPLIT.astype(np.float32)[:, None])
    graph = distribute(whole, comm)
    found = edge_features(graph)
    split = torch.zeros(0).char() if found is None else found[:, 0].to(torch.int8)
    return replace(graph, edge_split=split)


def ids_of(graph, places: np.ndarray) -> np.ndarray:
    return graph.derived(FindPlaces()).look_up(places, graph.node_ids.numpy())


def all_draws(comm, graph, count: int, epoch: int) -> np.ndarray:
    """Return the negative targets of every edge, `[150, count]` by target and source."""
    edges = numbered(graph, *graph.derived(EdgeEnds()))
    false = false_targets(KnownEdges.of(graph), edges, count, seed=5, epoch=epoch)
    shares = comm.allgather((edges.number, ids_of(graph, false.reshape(-1)).reshape(-1, count)))
    numbers = np.concatenate([number for number, _ in shares])
    return np.concatenate([ids for _, ids in shares])[np.argsort(numbers)]


def test_negative_pairs_do_not_depend_on_the_ranks(comm):
    graph = split_graph(comm)
    drawn = all_draws(comm, graph, 4, epoch=3)
    source = WHOLE.source[ORDER]
    true = {*zip(WHOLE.source.tolist(), WHOLE.target.tolist(), strict=True)}
    for k in range(4):
        assert not true & {*zip(source.tolist(), drawn[:, k].tolist(), strict=True)}
        assert (drawn[:, k] != source).all()
    assert drawn.min() == 0 and drawn.max() == 39
    assert (drawn != all_draws(comm, graph, 4, epoch=4)).any()
    # The same for any ranks and partition: compared with all nodes on rank 0.
    other = distribute(WHOLE, comm, np.zeros(40, np.int32))
    assert np.array_equal(all_draws(comm, other, 4, epoch=3), drawn)


@pytest.mark.parametrize("decoder", ["dot", "mlp"])
def test_loss_and_metrics(comm, decoder):
    full = split_graph(comm)
    settings = TaskSettings(
        kind="links", pair_width=6, decoder=decoder, negatives=3, ranked_against=5, hits_at=4
    )
    task = find_task(full, "hits", settings, seed=5)
    assert isinstance(task, LinkPrediction) and task.metric == "hits@4"
    graph = task.prepare(full)
    assert graph.num_edges == (SPLIT < 2).sum()
    graph.set_epoch(3)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32))
    own = local(graph, x).requires_grad_()
    share = task.loss(graph, own, task.targets(graph, "train"))
    share.backward()

    function = PairMLP(6, 1, product=True, seed=5)
    if decoder == "dot":
        function = lambda a, b: (a * b).sum(1, keepdim=True)  # noqa: E731
    dense = x.clone().requires_grad_()
    source, target, split = WHOLE.source[ORDER], WHOLE.target[ORDER], SPLIT[ORDER]

    def scores(rows, false):
        above = function(dense[source[rows]], dense[target[rows]])[:, 0]
        count = false.shape[1]
        others = function(dense[np.repeat(source[rows], count)], dense[false[rows].reshape(-1)])
        return above, others.reshape(-1, count)

    above, others = scores(split == 1, all_draws(comm, full, 3, epoch=3))
    terms = torch.cat([functional.softplus(-above), functional.softplus(others).flatten()])
    terms.mean().backward()
    np.testing.assert_allclose(
        comm.allreduce(float(share.detach())), terms.mean().item(), rtol=1e-5
    )
    torch.testing.assert_close(collect(graph, own.grad), dense.grad)

    found = task.metrics(graph, own.detach(), task.targets(graph, "valid"), "valid")
    above, others = (s.detach().numpy() for s in scores(split == 2, all_draws(comm, full, 5, 0)))
    ranks = 0.5 * ((others > above[:, None]).sum(1) + (others >= above[:, None]).sum(1)) + 1
    # A product is the same in both orders except for rounding, which decides between ties.
    near = {"rtol": 1e-6} if decoder == "dot" else {"atol": 5e-3}
    np.testing.assert_allclose(found["mrr"], (1 / ranks).mean(), **near)
    bar = np.sort(others.ravel())[-4]
    np.testing.assert_allclose(found["hits@4"], (above > bar).mean(), **near)
    flat = np.concatenate([above, others.ravel()])
    area = truth.roc_auc_score(np.arange(len(flat)) < len(above), flat)
    np.testing.assert_allclose(found["auc"], area, **near)
    assert task.is_scored(graph, "valid")


def test_predictions_of_links_are_those_held_out(comm):
    full = split_graph(comm)
    full = replace(full, original_ids=full.node_ids + 1000)
    task = LinkPrediction(6)
    graph = task.prepare(full)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32))
    rows = task.pairs(graph, local(graph, x))
    ids = ids_of_pairs(graph, rows.pairs, graph.original_ids.numpy())
    shares = comm.allgather(
        (rows.pairs.number, ids["source_ids"], ids["target_ids"], rows.rows["probabilities"])
    )
    number, source, target, found = (np.concatenate(part) for part in zip(*shares, strict=True))
    order = np.argsort(number)
    held_out = ORDER[SPLIT[ORDER] > 1]
    assert np.array_equal(np.sort(number), np.arange(len(held_out)))
    assert np.array_equal(source[order], WHOLE.source[held_out] + 1000)
    assert np.array_equal(target[order], WHOLE.target[held_out] + 1000)
    other = task.prepare(replace(full, node_ids=full.node_ids.clone(), edge_split=None))
    every = task.pairs(other, local(graph, x))  # a graph without a split: every edge
    assert comm.allreduce(len(every.pairs)) == 150
    dots = (x[WHOLE.source[held_out]] * x[WHOLE.target[held_out]]).sum(1)
    np.testing.assert_allclose(found[order], torch.sigmoid(dots).numpy(), rtol=1e-4)


def test_a_task_is_restored_from_its_stored_form():
    path = Path("last.h5")
    for task in (
        LinkPrediction(
            6, PairMLP(6, 1, product=True), metric="hits", hits_at=3, ranked_against=7, seed=4
        ),
        EdgeTask(Regression(2, "r2"), 5),
    ):
        same = stored_task(task.stored(), path)
        assert same.stored() == task.stored()
        for change in (
            {"width": 0},
            {"metric": "luck"},
            {"kind": "edge-luck"},
            {"metric": "hits@x"},
            {"kind": 5},
            {"kind": None, "multilabel": []},
            {"decoder": ["mlp"]},
            {"width": [6]},
            {"ranked_against": 0},
            {"ranked_against": 1 << 40},
            {"kind": "links", "metric": "mrr", "seed": -1},
        ):
            with pytest.raises(InputError, match="its task can't be"):
                stored_task(task.stored() | change, path)
        for known, large in (({6, 5, 2}, {"width": 30_000}), ({6}, {})):  # 7 GB of weights
            with pytest.raises(InputError, match="its task can't be"):
                stored_task(task.stored() | {"width": 5} | large, path, known)
    own = LinkPrediction(6, torch.nn.Bilinear(6, 6, 1)).stored()
    with pytest.raises(InputError, match=r"only the program that trained it knows its decoder"):
        stored_task(own, path)


def test_a_graph_with_hidden_edges_in_it_is_refused(comm):
    full = split_graph(comm)
    task = LinkPrediction(6)
    x = torch.zeros(full.num_local_nodes, 6)
    with pytest.raises(InputError, match=r"task\.prepare\(graph\)"):
        task.loss(full, x, task.targets(full, "train"))
    task.prepare(full)
    with pytest.raises(InputError, match=r"without the validation and test edges"):
        task.loss(full, x, task.targets(full, "train"))
    hidden = task.prepare(full)
    full.edge_split.zero_()
    with pytest.raises(InputError, match=r"graph\.edge_split was changed in place after"):
        task.loss(hidden, x, task.targets(hidden, "train"))
