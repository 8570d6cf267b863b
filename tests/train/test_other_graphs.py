"""Predictions on other graphs than the training graph: only inputs of the model are needed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcgnn.errors import InputError
from hpcgnn.graph.kinds import KindNames
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.predict import Predictor, read_checkpoint
from hpcgnn.train.prediction_file import check_ending
from hpcgnn.train.prediction_writing import write_predictions
from tests.graphs import collect, distribute, random_graph

pytestmark = pytest.mark.mpi
WHOLE = random_graph(40, 160, seed=1)
SMALL = {"model": "sage", "layers": 2, "hidden": 4, "epochs": 2, "seed": 3}


@pytest.fixture
def trained(comm, shared_path):
    """Return `trained(labels_as_input=0.5)`: path and content of a checkpoint, run on `WHOLE`."""

    def train(whole=WHOLE, relations=(), **settings):
        graph = whole if isinstance(whole, PartitionedGraph) else distribute(whole, comm)
        graph = replace(graph, graph_fingerprint="f" * 16, kinds=KindNames(relations=relations))
        configured_trainer(graph, Config.of(**(SMALL | settings)), shared_path).run()
        comm.barrier()
        return read_checkpoint(shared_path, comm)

    return train


def predict(comm, trained, *, whole=WHOLE, smooth=False, **changes):
    """Return the probabilities of all nodes of an unknown graph, and the scores."""
    path, checkpoint = trained
    graph = replace(distribute(whole, comm), **changes)
    found = Predictor(graph, checkpoint, path, any_graph=True).run(smooth=smooth)
    return collect(graph, torch.from_numpy(found.rows["probabilities"])), found.scores


BARE = {"labels": None, "train_mask": None, "valid_mask": None, "test_mask": None}
CASES = {
    "no labels": BARE | {"num_classes": 0},
    "no split": {"train_mask": None, "valid_mask": None, "test_mask": None},
    "fewer classes": {"num_classes": 1},
    "more classes": {"num_classes": 9},
}


def test_predicting_on_another_graph_needs_no_labels(comm, trained):
    found = trained()
    expected, scores = predict(comm, found)
    assert expected.shape == (40, 3) and scores.keys() == {"train", "valid", "test"}
    for name, changes in CASES.items():
        same, scores = predict(comm, found, **changes)
        assert torch.equal(same, expected), name
        assert (scores == {}) == (name in ("no labels", "no split"))
    unknown = replace(WHOLE, labels=np.full(40, -1), split=np.zeros(40, np.int8))
    same, scores = predict(comm, found, whole=unknown)
    assert torch.equal(same, expected) and scores == {}
    several = torch.zeros(distribute(WHOLE, comm).num_local_nodes, 5, dtype=torch.int8)
    same, scores = predict(comm, found, labels=several, num_classes=5)
    assert torch.equal(same, expected) and scores == {}
    larger, _ = predict(comm, found, whole=random_graph(70, 300, seed=2), **CASES["no labels"])
    assert larger.shape == (70, 3)


def test_learned_embeddings_are_applied_to_another_graph_only_if_requested(comm, trained, capfd):
    path, checkpoint = found = trained(embedding=3)
    with pytest.raises(InputError, match="learned embeddings by the numbers of the nodes"):
        Predictor(distribute(WHOLE, comm), checkpoint, path)
    capfd.readouterr()
    assert predict(comm, found)[0].shape == (40, 3)
    note = "note: learned embeddings are matched by the numbers of the nodes"
    assert (note in capfd.readouterr().err) == (comm.rank == 0)


def test_relations_of_another_graph_are_matched_by_number_and_a_note_says_so(comm, trained, capfd):
    whole = random_graph(40, 160, seed=1, num_relations=2)
    path, checkpoint = found = trained()
    predict(comm, found)
    assert "matched by number" not in capfd.readouterr().err
    graph = replace(distribute(whole, comm), graph_fingerprint="f" * 16)
    Predictor(graph, checkpoint, path)
    assert "matched by number" not in capfd.readouterr().err
    Predictor(replace(graph, graph_fingerprint="e" * 16), checkpoint, path, any_graph=True)
    assert ("matched by number" in capfd.readouterr().err) == (comm.rank == 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the model (sage) does not use edge weights and relations of this graph"),
        ({"ignore": "weights"}, "the model (sage) does not use relations of this graph"),
        ({"model": "gcn", "ignore": "relations"}, None),
    ],
)
def test_data_of_another_graph_that_the_model_does_not_read_are_named(
    comm, trained, capfd, settings, said
):
    found = trained(**settings)
    capfd.readouterr()
    predict(comm, found, whole=random_graph(40, 160, seed=1, weighted=True, num_relations=2))
    err = capfd.readouterr().err
    assert said in err if said is not None and comm.rank == 0 else "does not use" not in err


@pytest.mark.parametrize(
    ("settings", "before", "said"),
    [
        ({"model": "gcn"}, False, "this graph has edge weights, the graph trained on had none"),
        ({"model": "gcn"}, True, "this graph has no edge weights, the graph trained on had some"),
        ({"model": "gcn", "ignore": "weights"}, False, None),
        ({"model": "gat"}, False, None),
    ],
)
def test_weights_that_only_one_of_the_graphs_has_are_named(
    comm, trained, capfd, settings, before, said
):
    weighted, bare = random_graph(40, 160, seed=1, weighted=True), WHOLE
    found = trained(weighted if before else bare, **settings)
    capfd.readouterr()
    predict(comm, found, whole=weighted if before else bare)
    assert "edge weights, the graph" not in capfd.readouterr().err
    predict(comm, found, whole=bare if before else weighted)
    err = capfd.readouterr().err
    assert said in err if said is not None and comm.rank == 0 else "the graph trained" not in err
    stored = found[1].attributes(0)["weighted"] if found[1].weighted is not None else None
    assert stored == (before and "weights" not in settings.get("ignore", ""))


@pytest.mark.parametrize("model", ["rgcn", "sage"])
def test_relations_in_another_order_are_refused_if_the_model_reads_them(
    comm, trained, capfd, model
):
    whole = random_graph(40, 160, seed=1, num_relations=3)
    found = trained(whole, ("cites", "knows", "likes"), model=model)
    capfd.readouterr()
    predict(comm, found, whole=whole, kinds=KindNames(relations=("cites", "knows", "likes")))
    assert "matched by number" not in capfd.readouterr().err
    predict(comm, found, whole=whole, kinds=KindNames(relations=("cites", "knows", "hates")))
    said = "relation 2 was (likes), is (hates)"
    assert (said in capfd.readouterr().err) == (comm.rank == 0)
    other = KindNames(relations=("cites", "admires", "knows"))
    if model == "sage":
        predict(comm, found, whole=whole, kinds=other)
        return
    with pytest.raises(InputError, match=r"relation 1 as \(knows\), which is number 2 in this"):
        predict(comm, found, whole=whole, kinds=other)


@pytest.mark.parametrize(("here", "there"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("bases", [0, 2])
def test_another_number_of_relations_is_refused(comm, trained, here, there, bases):
    names = ("cites", "knows", "likes")
    wholes = {n: random_graph(40, 160, seed=1, num_relations=n) for n in (here, there)}
    found = trained(wholes[here], names[:here], model="rgcn", bases=bases)
    for said in ((), names[:there]):
        with pytest.raises(InputError, match=r"belongs to another model: parameter .* shape"):
            predict(comm, found, whole=wholes[there], kinds=KindNames(relations=said))


@pytest.mark.parametrize(("here", "there"), [(2, 3), (3, 2)])
def test_another_number_of_typed_features_is_refused(comm, trained, here, there):
    def typed(count):
        graph = distribute(WHOLE, comm)
        own = graph.node_ids % count
        rows = {k: torch.ones(int((own == k).sum()), 4 + k) for k in range(count)}
        return replace(graph, features=None, node_types=own, typed_features=rows, num_types=count)

    path, checkpoint = trained(typed(here))
    with pytest.raises(InputError, match="belongs to another model"):
        Predictor(typed(there), checkpoint, path, any_graph=True)


def test_models_that_read_labels_require_them(comm, trained):
    found = trained(labels_as_input=0.5)
    expected, _ = predict(comm, found)
    hidden = replace(WHOLE, labels=np.where(WHOLE.split == 1, WHOLE.labels, 7))
    same, _ = predict(comm, found, whole=hidden, num_classes=8)  # other nodes' classes aren't read
    assert torch.equal(same, expected)
    untold = replace(WHOLE, split=np.where(WHOLE.split == 1, 0, WHOLE.split))
    foreign = replace(WHOLE, labels=np.where(WHOLE.split == 1, 7, WHOLE.labels))
    reader = "a model trained with --labels-as-input reads the labels of training nodes"
    for whole, changes, words in (
        (WHOLE, BARE, "but this graph has none"),
        (untold, {}, "but this graph has none"),
        (foreign, {}, r"which must be classes of the model: 0 .. 2 \(found 7\)"),
    ):
        with pytest.raises(InputError, match=f"{reader}, {words}"):
            predict(comm, found, whole=whole, **changes)


def test_smoothing_uses_training_labels(comm, trained):
    found = trained()
    with pytest.raises(InputError, match=r"--correct-and-smooth reads .* but this graph has none"):
        predict(comm, found, smooth=True, **BARE)
    numbers = replace(distribute(WHOLE, comm), graph_fingerprint="0" * 16)
    numbers = replace(numbers, labels=torch.rand(numbers.num_local_nodes))
    path, checkpoint = found
    with pytest.raises(InputError, match=r"--correct-and-smooth reads .* but this graph has none"):
        Predictor(numbers, checkpoint, path, any_graph=True).run(smooth=True)
    older = path, replace(checkpoint, task={})
    assert torch.equal(predict(comm, older)[0], predict(comm, found)[0])
    for task in ({"num_outputs": 1 << 40}, {"num_outputs": "3"}, {"metric": "luck"}):
        forged = replace(checkpoint, task=checkpoint.task | task)
        with pytest.raises(InputError, match="its task can't be"):
            predict(comm, (path, forged))


@pytest.mark.parametrize("slab", [64 << 20, 200])
def test_the_suffix_selects_the_format(comm, shared_path, trained, monkeypatch, slab):
    monkeypatch.setattr("hpcgnn.train.prediction_writing.SLAB_BYTES", slab)
    path, checkpoint = trained()
    graph = distribute(WHOLE, comm)
    graph = replace(graph, original_ids=graph.node_ids + (1 << 60))
    rows = Predictor(graph, checkpoint, path, any_graph=True).run(embeddings=True).rows
    for ending in ("h5", "npz", "csv"):
        write_predictions(shared_path / f"p.{ending}", graph, rows, {"epoch": 2})
    comm.barrier()
    with h5py.File(shared_path / "p.h5") as file:
        whole = {name: file[name][()] for name in file}
    with np.load(shared_path / "p.npz") as archive:
        assert set(archive.files) == {*whole, "attributes"}
        for name, values in whole.items():
            assert archive[name].dtype == values.dtype
            np.testing.assert_array_equal(archive[name], values)
        assert json.loads(str(archive["attributes"]))["num_nodes"] == 40
    with (shared_path / "p.csv").open(newline="") as text:
        table = list(csv.DictReader(text))
    np.testing.assert_array_equal([int(row["original_id"]) for row in table], whole["original_ids"])
    np.testing.assert_array_equal([int(row["class"]) for row in table], whole["classes"])
    for title, name in (("probability", "probabilities"), ("embedding", "embeddings")):
        for k in range(whole[name].shape[1]):
            column = np.array([row[f"{title}_{k}"] for row in table], np.float32)
            np.testing.assert_array_equal(column, whole[name][:, k])
    assert not list(Path(shared_path).glob(".p.*"))


@pytest.mark.parametrize("name", ["p", "p.txt", "p.h5.gz", "csv"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(InputError, match=r"-o must end in \.h5, \.parquet, \.csv or \.npz"):
        check_ending(Path(name))
