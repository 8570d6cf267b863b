"""Inputs of the first layer: learned embeddings, typed features, labels and perturbed features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.models.build import build_model
from hpcgnn.models.inputs import EmbeddingInput, FeatureInput, LabelInput, TypedInput
from hpcgnn.nn.linear import is_sharded
from hpcgnn.storage.read.load import sparse_rows
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.optimisation import Attack
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
COUNT = 200


@pytest.fixture
def whole():
    return random_graph(COUNT, 500, seed=3)


@pytest.fixture
def graph(comm, whole):
    return distribute(whole, comm)


def by_block(whole, comm):
    owner = np.arange(whole.num_nodes) * comm.size // whole.num_nodes
    return distribute(whole, comm, owner.astype(np.int32))


def small(**changes) -> Config:
    base = {
        "model": "sage",
        "layers": 2,
        "hidden": 8,
        "dropout": 0.0,
        "epochs": 3,
        "checkpoint_every": 0,
        "seed": 4,
    }
    return Config.of(**(base | changes))


def test_embedding_rows_are_the_same_on_any_partition(comm, whole, graph):
    rows = collect(graph, EmbeddingInput(graph, 6, 1).embedding(graph))
    other = by_block(whole, comm)
    assert torch.equal(rows, collect(other, EmbeddingInput(other, 6, 1).embedding(other)))
    assert not torch.equal(rows, collect(graph, EmbeddingInput(graph, 6, 2).embedding(graph)))
    assert len(rows.unique(dim=0)) == COUNT
    assert rows.abs().max() <= 1 and abs(float(rows.mean())) < 0.1  # +- sqrt(6 / 6)
    both = EmbeddingInput(graph, 6, 1)
    assert both.width == 5 + 6
    torch.testing.assert_close(both(graph)[:, :5], graph.features)


def test_embeddings_besides_sparse_features(graph):
    """The input is the same as with dense features."""
    dense = EmbeddingInput(graph, 6, 1)(graph)
    rows, width = graph.features.shape
    flat = graph.features.numpy().reshape(-1)
    columns = np.tile(np.arange(width), rows)
    graph = replace(graph, features=sparse_rows(np.arange(rows + 1) * width, columns, flat, width))
    inputs = EmbeddingInput(graph, 6, 1)
    assert inputs.width == 5 + 6
    assert torch.equal(inputs(graph), dense)


@pytest.mark.several_ranks
def test_embeddings_are_trained_only_by_their_owner(comm, whole, shared_path, tmp_path):
    """Trained rows equal those of one rank; their gradients are not summed over ranks."""
    found = {}
    for name, ranks, folder in (
        ("all", comm, shared_path),
        ("one", Communicator(MPI.COMM_SELF), tmp_path),
    ):
        graph = distribute(whole, ranks)
        trainer = configured_trainer(graph, small(embedding=6), folder)
        sharded = [p for p in trainer.parameters if is_sharded(p)]
        assert [tuple(p.shape) for p in sharded] == [(graph.num_local_nodes, 6)]
        assert not any(p is own for p in trainer.replicated for own in sharded)
        start = collect(graph, sharded[0])
        trainer.run()
        found[name] = collect(graph, sharded[0])
        assert (found[name] != start).any(dim=1).sum() > COUNT / 2
    torch.testing.assert_close(found["all"], found["one"], rtol=1e-3, atol=1e-4)


def test_typed_features(comm, whole, graph):
    """Types 0 and 2 have features of their own width, type 1 learns embeddings."""
    kinds = np.random.default_rng(1).integers(0, 3, COUNT)
    tables = {
        0: torch.randn(COUNT, 4, generator=torch.manual_seed(1)),
        2: torch.randn(COUNT, 9, generator=torch.manual_seed(2)),
    }
    own = local(graph, kinds)
    typed = {kind: local(graph, rows)[own == kind] for kind, rows in tables.items()}
    graph = replace(graph, node_types=own, typed_features=typed)
    torch.manual_seed(5)
    inputs = TypedInput(graph, 6, 1)
    rows = inputs(graph)
    found = collect(graph, rows)
    learned = collect(graph, inputs.embedding(graph))
    for kind in range(3):
        here = torch.from_numpy(kinds == kind)
        expected = inputs.maps[str(kind)](tables[kind]) if kind in tables else learned
        torch.testing.assert_close(found[here], expected[here])
    rows.sum().backward()
    moved = collect(graph, inputs.embedding.weight.grad) != 0
    assert torch.equal(moved.any(dim=1), torch.from_numpy(kinds == 1))
    for kind, rows_F in tables.items():
        total = comm.allreduce(inputs.maps[str(kind)].weight.grad)
        expected = rows_F[torch.from_numpy(kinds == kind)].sum(0).expand(6, -1)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def shown(graph, epoch: int, share: float = 0.3) -> torch.Tensor:
    graph.set_epoch(epoch)
    graph.execution.seed = 7
    inputs = LabelInput(FeatureInput(graph), 3, share).train()
    rows = inputs(graph)
    torch.testing.assert_close(rows[:, :5], graph.features)
    marked = rows[:, 5:].sum(1) > 0
    assert torch.equal(marked, inputs.shown(graph))
    assert torch.equal(rows[marked, 5:].argmax(1), graph.labels[marked])
    return collect(graph, marked)


def test_label_inputs_change_per_epoch_and_do_not_depend_on_the_partition(comm, whole, graph):
    train = torch.from_numpy((whole.split == 1) & (whole.labels >= 0))
    draws = [shown(graph, epoch) for epoch in (1, 2, 3, 4)]
    for draw in draws:
        assert not (draw & ~train).any()
    assert all(not torch.equal(draws[0], draw) for draw in draws[1:])
    share = float(torch.stack(draws)[:, train].float().mean())
    assert abs(share - 0.3) < 4 * (0.21 / (4 * int(train.sum()))) ** 0.5
    assert torch.equal(draws[0], shown(by_block(whole, comm), 1))
    quiet = LabelInput(FeatureInput(graph), 3, 0.3).eval()
    assert torch.equal(collect(graph, quiet.shown(graph)), train)


def test_a_label_input_is_never_a_target(comm, graph, shared_path):
    trainer = configured_trainer(graph, small(labels_as_input=0.4), shared_path)
    trainer.model.train()
    graph = trainer.graph
    for epoch in (1, 2, 3):
        graph.set_epoch(epoch)
        rows = trainer.call.targets(trainer.rows["train"])
        seen = trainer.model.inputs.shown(graph)
        assert not seen[rows].any()
        count = comm.allreduce(len(rows))
        expected = comm.allreduce(int((graph.train_mask & (graph.labels >= 0) & ~seen).sum()))
        assert count == expected > 0
    trainer.store.close()


def test_adversarial_steps_ascend_the_loss(comm, whole, graph):
    """The shift starts within its bound and climbs along the sign of the summed loss's gradient."""
    config = small(adversarial_steps=3, adversarial_size=0.01)
    model = build_model(config.model, graph, 3, seed=4)
    attack = Attack(model, graph, config)
    start = attack.shift_NF.detach().clone()
    assert start.numel() == 0 or float(start.abs().max()) <= 0.01
    other = by_block(whole, comm)
    same = Attack(build_model(config.model, other, 3, seed=4), other, config).shift_NF
    assert torch.equal(collect(graph, start), collect(other, same))
    gradients, inputs = [], []

    def one_pass(x_NF):
        inputs.append(x_NF.detach().clone())
        loss = model(graph, x_NF).square().sum()
        loss.backward()
        gradients.append(attack.shift_NF.grad.clone())
        return comm.allreduce(float(loss.detach()))

    mean = attack.run(one_pass)
    assert mean > 0 and len(gradients) == 3
    shift = start
    for x, gradient in zip(inputs, gradients, strict=True):
        torch.testing.assert_close(x, graph.features + shift)
        shift = shift + 0.01 * gradient.sign()
    torch.testing.assert_close(attack.shift_NF.detach(), shift)


def test_an_adversary_raises_the_training_loss(comm, whole, graph, shared_path):
    """With the same model and epoch, ascent can only raise the loss."""
    losses = {}
    for steps in (0, 4):
        config = small(adversarial_steps=steps, adversarial_size=0.05, epochs=1)
        trainer = configured_trainer(distribute(whole, comm), config, shared_path / str(steps))
        losses[steps] = trainer._epoch(1)["loss"]
        trainer.store.close()
    assert losses[4] > losses[0]


def test_missing_inputs_are_named(graph):
    graph = replace(graph, features=None)
    with pytest.raises(InputError, match="--embedding WIDTH"):
        FeatureInput(graph)
    graph = replace(graph, labels=None)
    with pytest.raises(InputError, match="--labels-as-input needs one class per node"):
        LabelInput(EmbeddingInput(graph, 3, 0), 3, 0.5).shown(graph)
