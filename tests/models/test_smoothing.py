"""Label propagation and Correct & Smooth compared with dense and published results."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.models.smoothing import correct_and_smooth, label_propagation, propagate
from tests.graphs import Whole, collect, distribute, local, random_graph

mpi = pytest.mark.mpi


@pytest.fixture
def whole() -> Whole:
    graph = random_graph(60, 200, seed=2, symmetric=True)
    graph.labels[::7] = -1
    return graph


def dense_operator(whole: Whole, normalisation: str) -> Tensor:
    matrix = whole.dense(weighted=False)
    degree = matrix.sum(1).clamp(min=1)
    return {
        "DAD": matrix / degree.sqrt()[:, None] / degree.sqrt()[None, :],
        "DA": matrix / degree[:, None],
        "AD": matrix / degree[None, :],
    }[normalisation]


def dense_propagation(operator: Tensor, start: Tensor, alpha: float, steps: int, low=0.0) -> Tensor:
    y = start
    for _ in range(steps):
        y = (alpha * operator @ y + (1 - alpha) * start).clamp(low, 1)
    return y


def known(whole: Whole) -> tuple[Tensor, Tensor]:
    """Return one-hot labels of labelled training nodes, and which nodes these are."""
    mask = torch.from_numpy((whole.split == 1) & (whole.labels >= 0))
    labels = torch.from_numpy(whole.labels).clamp(min=0)
    return functional.one_hot(labels, 3).double() * mask[:, None], mask


@mpi
@pytest.mark.parametrize("normalisation", ["DAD", "DA", "AD"])
def test_label_propagation(comm, whole, normalisation):
    start, _ = known(whole)
    operator = dense_operator(whole, normalisation)
    expected = dense_propagation(operator, start, 0.9, 8)
    graph = distribute(whole, comm)
    found = label_propagation(
        graph, graph.train_mask, 3, alpha=0.9, steps=8, normalisation=normalisation
    )
    torch.testing.assert_close(collect(graph, found).double(), expected, rtol=1e-5, atol=1e-6)


@mpi
def test_labels_that_are_not_training_labels_are_never_read(comm, whole):
    scores = []
    for _ in range(2):
        graph = distribute(whole, comm)
        scores.append(collect(graph, label_propagation(graph, graph.train_mask, 3, steps=5)))
        whole.labels[whole.split != 1] = (whole.labels[whole.split != 1] + 1) % 3
    assert torch.equal(*scores)


@mpi
def test_correct_and_smooth(comm, whole):
    truth, mask = known(whole)
    soft = torch.randn(60, 3, generator=torch.manual_seed(1)).softmax(1)
    operator = dense_operator(whole, "DAD")
    error = torch.where(mask[:, None], truth - soft.double(), 0.0)
    spread = dense_propagation(operator, error, 0.7, 10, low=-1.0)
    scale = error.abs().sum() / mask.sum() / spread.abs().sum(1, keepdim=True)
    scale[~torch.isfinite(scale) | (scale > 1000)] = 1.0
    corrected = torch.where(mask[:, None], truth, soft + scale * spread)
    expected = dense_propagation(operator, corrected, 0.6, 10)
    graph = distribute(whole, comm)
    found = correct_and_smooth(
        graph, local(graph, soft), graph.train_mask, correct_alpha=0.7, smooth_alpha=0.6, steps=10
    )
    torch.testing.assert_close(collect(graph, found).double(), expected, rtol=1e-4, atol=1e-5)


@mpi
@pytest.mark.parametrize("weighted", [False, True])
def test_same_results_as_pytorch_geometric(comm, whole, weighted):
    """PyTorch Geometric's agrees on graphs without self-loops and parallel edges.

    It takes weights after their normalisation.
    """
    models = pytest.importorskip("torch_geometric.nn")
    once = np.unique(
        np.stack([whole.target, whole.source])[:, whole.source != whole.target], axis=1
    )
    whole.target, whole.source = once
    weight = None
    if weighted:
        whole.weight = np.random.default_rng(1).uniform(0.1, 3, once.shape[1]).astype(np.float32)
        normed = pytest.importorskip("torch_geometric.nn.conv.gcn_conv").gcn_norm
        given = torch.from_numpy(whole.weight)
        _, weight = normed(whole.edge_index, given, whole.num_nodes, add_self_loops=False)
    _, mask = known(whole)
    edge_index = whole.edge_index
    theirs = models.LabelPropagation(num_layers=6, alpha=0.8)
    labels = torch.from_numpy(whole.labels).clamp(min=0)
    expected = theirs(labels, edge_index, mask, edge_weight=weight)
    graph = distribute(whole, comm)
    mine = graph.train_mask
    found = label_propagation(graph, mine, 3, alpha=0.8, steps=6, normalisation="DAD")
    found = collect(graph, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    soft = torch.randn(60, 3, generator=torch.manual_seed(1)).softmax(1)
    theirs = models.CorrectAndSmooth(9, 0.8, 9, 0.7, autoscale=True)
    corrected = theirs.correct(soft, labels[mask], mask, edge_index, weight)
    expected = theirs.smooth(corrected, labels[mask], mask, edge_index, weight)
    smoothed = correct_and_smooth(
        graph, local(graph, soft), mine, correct_alpha=0.8, smooth_alpha=0.7, steps=9
    )
    torch.testing.assert_close(collect(graph, smoothed), expected, rtol=1e-3, atol=1e-4)


@mpi
def test_same_results_as_pytorch_geometric_on_directed_graphs(comm):
    """A node without in-edges has weight 0 on both sides, as PyTorch Geometric's 1 / sqrt(0)."""
    models = pytest.importorskip("torch_geometric.nn")
    whole = random_graph(60, 150, seed=5)
    straight = whole.source != whole.target
    once = np.unique(np.stack([whole.target, whole.source])[:, straight], axis=1)
    whole.target, whole.source = once
    assert len(np.unique(whole.target)) < 55  # some have none
    _, mask = known(whole)
    labels = torch.from_numpy(whole.labels).clamp(min=0)
    expected = models.LabelPropagation(num_layers=8, alpha=0.9)(labels, whole.edge_index, mask)
    graph = distribute(whole, comm)
    found = label_propagation(graph, graph.train_mask, 3, alpha=0.9, steps=8, normalisation="DAD")
    torch.testing.assert_close(collect(graph, found), expected, rtol=1e-4, atol=1e-6)


@mpi
def test_weights_that_can_not_be_normalised_are_refused(comm, whole):
    whole.weight = np.full(len(whole.source), -1, np.float32)
    graph = distribute(whole, comm)
    with pytest.raises(InputError, match="do not sum to a finite number above 0"):
        label_propagation(graph, graph.train_mask, 3, steps=1)


@mpi
def test_without_known_labels_only_smoothing_acts(comm, whole):
    graph = distribute(whole, comm)
    nobody = torch.zeros_like(graph.train_mask)
    assert not label_propagation(graph, nobody, 3, steps=2).any()
    soft = local(graph, torch.randn(60, 3, generator=torch.manual_seed(1)).softmax(1))
    smoothed = correct_and_smooth(graph, soft, nobody, steps=5)
    torch.testing.assert_close(smoothed, propagate(graph, soft, alpha=0.8, steps=5))


def test_label_propagation_reaches_the_published_accuracy_on_arxiv(mpirun, data, tmp_path):
    """Validation 70.14, test 68.32 from labels only (Huang et al. 2021), on the command line."""
    graph, parts = tmp_path / "arxiv.h5", tmp_path / "parts.h5"
    for command in (
        (0, "convert", data / "arxiv_structure.npz", graph),
        (2, "partition", graph, "--method", "streaming", "-o", parts),
        (2, "predict", parts, "--label-propagation", "-o", tmp_path / "out.h5"),
    ):
        result = mpirun(*command)
        assert result.returncode == 0, result.stderr
    scores = re.search(r"valid ([\d.]+) %, test ([\d.]+) %", result.stdout)
    assert scores, result.stdout
    assert abs(float(scores[1]) - 70.14) < 0.2
    assert abs(float(scores[2]) - 68.32) < 0.2
