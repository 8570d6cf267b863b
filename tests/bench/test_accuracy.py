"""Seconds to an accuracy count training only; sampled training learns the same model."""

import json

import numpy as np
import pytest
import torch

from hpcgnn.bench import peer
from hpcgnn.bench.accuracy import Race, fanout
from hpcgnn.bench.training import Training

TRAINING = Training([1.0, 2.0, 3.0, 4.0], [0.0] * 4, scores=[None, 0.5, 0.8, 0.7])


def test_the_first_epoch_that_reaches_the_target_counts():
    race = Race.of("ours", TRAINING, 0.75)
    assert (race.seconds, race.epoch, race.best) == (6.0, 3, 0.8)
    assert race.curve == ((3.0, 0.5), (6.0, 0.8), (10.0, 0.7))
    assert race.cells() == ["ours", "6 s", "3 epochs", "80.00 %"]


def test_contenders_below_the_target_are_shown_as_such():
    assert Race.of("a", TRAINING, 0.9).cells() == ["a", "not reached", "3 epochs", "80.00 %"]
    assert Race.of("b", Training([1.0], [1.0]), 0.9).cells() == ["b", "it reported no scores"]
    assert Race.of("c", Training(problem="no pyg-lib"), 0.9).cells() == ["c", "no pyg-lib"]


def test_number_of_sampled_neighbours_per_layer():
    assert [list(fanout(n)) for n in (1, 3, 4)] == [[15], [15, 10, 5], [15, 10, 5, 5]]


def test_a_sampler_trains_until_the_accuracy_is_reached(tmp_path, monkeypatch):
    """The batches hold the whole graph."""
    pytest.importorskip("torch_geometric")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    arrays = {
        "pointer": np.arange(41),
        "source": np.arange(40)[::-1].copy(),
        "labels": labels,
        "features": (rng.normal(size=(40, 4)) + 3 * labels[:, None]).astype(np.float32),
        "train": np.arange(0, 40, 2),
        "valid": np.arange(1, 40, 2),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(
        tmp_path / "weights.npz",
        **{
            "convs.0.lin_l.weight": rng.normal(size=(2, 4)).astype(np.float32),
            "convs.0.lin_l.bias": np.zeros(2, np.float32),
            "convs.0.lin_r.weight": rng.normal(size=(2, 4)).astype(np.float32),
        },
    )
    settings = {
        "model": "sage",
        "layers": 1,
        "hidden": 8,
        "heads": 1,
        "features": 4,
        "classes": 2,
        "epochs": 50,
        "lr": 0.1,
        "target": 0.95,
        "seed": 0,
    }
    (tmp_path / "problem.json").write_text(json.dumps(settings))
    problem = peer.GivenProblem(tmp_path)

    def whole(_):
        def batches(model):
            yield model(problem.features)[problem.train], problem.labels[problem.train]

        return batches

    monkeypatch.setattr(peer, "pyg_batches", whole)
    with torch.random.fork_rng(devices=[]):
        found = peer.sampled_epochs("PyG NeighborLoader", problem)
    assert 1 <= len(found["scores"]) < 50
    assert found["scores"][-1] >= 0.95 and all(score < 0.95 for score in found["scores"][:-1])
    assert len(found["seconds"]) == len(found["losses"]) == len(found["scores"])
