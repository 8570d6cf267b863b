"""Losses and metrics of tasks over the ranks, compared with torch and scikit-learn on all rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.tasks import (
    EdgeTask,
    LinkPrediction,
    MultiClass,
    MultiLabel,
    PairMLP,
    Regression,
    find_task,
)
from hpcgnn.tasks.settings import TaskSettings
from tests.graphs import collect, distribute, local, random_graph
from tests.late import Late
from tests.test_readme import blocks

truth = Late("sklearn.metrics")
class_weight = Late("sklearn.utils.class_weight")

pytestmark = pytest.mark.mpi
WHOLE = random_graph(45, 160, seed=3)
RNG = np.random.default_rng(8)
TRAIN, VALID = WHOLE.split == 1, WHOLE.split == 2


def answers(comm, values: np.ndarray, name: str = "labels", **arrays: np.ndarray):
    """Return a part of `WHOLE` with these labels, or with them as a named array."""
    graph = distribute(WHOLE, comm)
    rows = local(graph, torch.from_numpy(values))
    nodes = {key: local(graph, torch.from_numpy(array)) for key, array in arrays.items()}
    if name != "labels":
        return replace(graph, labels=None, nodes=nodes | {name: rows})
    return replace(graph, labels=rows, nodes=nodes)


def run(graph, task, output: np.ndarray, split: str = "valid"):
    """Return the loss over the ranks, the output's gradient on all nodes, metrics of a split."""
    own = local(graph, torch.from_numpy(output.astype(np.float32))).requires_grad_()
    rows = task.targets(graph, "train")
    share = task.loss(graph, own[rows], rows)
    share.backward()
    scored = task.targets(graph, split)
    found = task.metrics(graph, own.detach()[scored], scored, split)
    assert task.is_scored(graph, split) == math.isfinite(found[task.metric])
    return graph.comm.allreduce(float(share.detach())), collect(graph, own.grad), found


def check_loss(found, output: np.ndarray, reference) -> None:
    """Compare with the loss `reference` of all outputs and its gradient by autograd."""
    whole = torch.from_numpy(output.astype(np.float32)).requires_grad_()
    loss = reference(whole)
    loss.backward()
    np.testing.assert_allclose(found[0], loss.item(), rtol=1e-5)
    torch.testing.assert_close(found[1], whole.grad)


@pytest.mark.parametrize(
    "weights, smoothing", [(None, 0.0), ((0.5, 2.0, 0.0), 0.0), ("balanced", 0.2)]
)
def test_classes(comm, weights, smoothing):
    labels = np.where(RNG.random(45) < 0.1, -1, WHOLE.labels)
    labels = np.random.default_rng(1).permutation(labels)
    output = np.random.default_rng(2).normal(size=(45, 3))
    known = TRAIN & (labels >= 0)
    graph = answers(comm, labels)
    if weights == "balanced":
        settings = TaskSettings(class_weights="balanced", label_smoothing=smoothing)
        task = find_task(graph, "macro_f1", settings)
        right = class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels[known])
        np.testing.assert_allclose(task.class_weights, right)
    else:
        task = MultiClass(3, "macro_f1", class_weights=weights, label_smoothing=smoothing)
    found = run(graph, task, output)
    weight = None if task.class_weights is None else torch.tensor(task.class_weights).float()
    rows = torch.from_numpy(known)
    check_loss(
        found,
        output,
        lambda x: functional.cross_entropy(
            x[rows], torch.from_numpy(labels)[rows], weight, label_smoothing=smoothing
        ),
    )
    scored = VALID & (labels >= 0)
    true, guess = labels[scored], output[scored].argmax(1)
    np.testing.assert_allclose(found[2]["accuracy"], truth.accuracy_score(true, guess))
    np.testing.assert_allclose(found[2]["f1"], truth.f1_score(true, guess, average="micro"))
    np.testing.assert_allclose(
        found[2]["macro_f1"], truth.f1_score(true, guess, average="macro", zero_division=0)
    )


@pytest.mark.parametrize("metric", ["auc", "average_precision"])
def test_two_classes(comm, metric):
    labels = WHOLE.labels % 2
    output = np.random.default_rng(2).integers(0, 3, (45, 2))
    score = {"auc": truth.roc_auc_score, "average_precision": truth.average_precision_score}
    found = run(answers(comm, labels), MultiClass(2, metric), output)[2][metric]
    right = score[metric](labels[VALID], (output[:, 1] - output[:, 0])[VALID])
    np.testing.assert_allclose(found, right)
    more, task = answers(comm, WHOLE.labels), MultiClass(2, metric)
    rows = task.targets(more, "valid")
    own = local(more, torch.from_numpy(output).float())
    assert math.isnan(task.metrics(more, own[rows], rows, "valid")[metric])
    assert not task.is_scored(more, "valid")


@pytest.mark.parametrize("weights", [None, "2", "balanced"])
def test_several_labels(comm, weights):
    rng = np.random.default_rng(4)
    labels = rng.integers(-1, 2, (45, 3)).astype(np.int8)
    output = rng.normal(size=(45, 3))
    settings = TaskSettings(positive_weights=weights or "none")
    graph = answers(comm, labels)
    task = find_task(graph, "auc", settings)
    assert isinstance(task, MultiLabel)
    rows = TRAIN & (labels >= 0).any(1)
    known = labels >= 0
    if weights == "balanced":
        right = [(labels[rows, t] == 0).sum() / (labels[rows, t] == 1).sum() for t in range(3)]
        np.testing.assert_allclose(task.positive_weights, right)
    positive = None if weights is None else torch.tensor(task.positive_weights).float()
    found = run(graph, task, output)

    def reference(x):
        truths = torch.from_numpy(labels[rows].clip(0)).float()
        terms = functional.binary_cross_entropy_with_logits(
            x[torch.from_numpy(rows)], truths, pos_weight=positive, reduction="none"
        )
        return (terms * torch.from_numpy(known[rows])).sum() / 3 / rows.sum()

    check_loss(found, output, reference)
    areas = [
        truth.roc_auc_score(labels[VALID & known[:, t], t], output[VALID & known[:, t], t])
        for t in range(3)
    ]
    np.testing.assert_allclose(found[2]["auc"], np.mean(areas))


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
@pytest.mark.parametrize("width, weighted", [(None, True), (2, False)])
def test_values(comm, loss, width, weighted):
    rng = np.random.default_rng(5)
    shape = 45 if width is None else (45, width)
    values = rng.normal(size=shape).astype(np.float32)
    values[rng.random(shape) < 0.2] = np.nan
    output = rng.normal(size=(45, width or 1))
    weight = rng.random(45).astype(np.float32)
    graph = answers(comm, values, "speed", weight=weight)
    settings = TaskSettings(
        target="speed",
        kind="values",
        loss=loss,
        huber_delta=0.5,
        node_weights="weight" if weighted else "none",
    )
    task = find_task(graph, "rmse", settings)
    assert isinstance(task, Regression) and not task.larger_is_better
    found = run(graph, task, output)
    wide = values.reshape(45, -1)
    shares = (~np.isnan(wide) & TRAIN[:, None]) * (weight[:, None] if weighted else 1)
    functions = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": lambda a, b, reduction: functional.huber_loss(a, b, reduction, 0.5),
    }

    def reference(x):
        true = torch.from_numpy(np.nan_to_num(wide))
        terms = functions[loss](x, true, reduction="none") * torch.from_numpy(shares)
        return terms.sum().float() / shares.sum()

    check_loss(found, output, reference)
    for name, score in (
        ("mae", truth.mean_absolute_error),
        ("rmse", truth.root_mean_squared_error),
        ("r2", truth.r2_score),
    ):
        columns = [VALID & ~np.isnan(wide[:, t]) for t in range(wide.shape[1])]
        right = [
            score(wide[rows, t].astype(float), output.astype(np.float32)[rows, t].astype(float))
            for t, rows in enumerate(columns)
        ]
        np.testing.assert_allclose(found[2][name], np.mean(right), rtol=1e-6)


def split_edges(comm, labels: np.ndarray, split: np.ndarray):
    """Return a part of `WHOLE` whose edges have labels and a split, given in the file's order."""
    whole = replace(WHOLE, edge_features=np.arange(160, dtype=np.float32)[:, None])
    graph = distribute(whole, comm)
    from hpcgnn.sar.messages import edge_features

    found = edge_features(graph)
    number = torch.zeros(0).long() if found is None else found[:, 0].long()
    return replace(
        graph,
        edge_labels=torch.from_numpy(labels)[number],
        edge_split=torch.from_numpy(split)[number],
    )


@pytest.mark.parametrize("kind", ["edge-classes", "edge-values", "edge-labels"])
def test_edges(comm, kind):
    rng = np.random.default_rng(6)
    split = rng.integers(0, 4, 160).astype(np.int8)
    labels = {
        "edge-classes": rng.integers(-1, 3, 160),
        "edge-values": rng.normal(size=(160, 2)).astype(np.float32),
        "edge-labels": rng.integers(0, 2, (160, 2)).astype(np.int8),
    }[kind]
    output = rng.normal(size=(45, 5))
    graph = split_edges(comm, labels, split)
    task = find_task(graph, "auto", TaskSettings(kind=kind, pair_width=5), seed=3)
    assert isinstance(task, EdgeTask) and task.num_outputs == 5
    found = run(graph, task, output)
    outputs = 3 if kind == "edge-classes" else 2
    decoder = PairMLP(5, outputs, seed=3)
    known = labels >= 0 if kind == "edge-classes" else np.ones(160, bool)

    def values(x, rows):
        return decoder(x[WHOLE.source[rows]], x[WHOLE.target[rows]])

    train, valid = ((split == code) & known for code in (1, 2))

    def reference(x):
        true = torch.from_numpy(labels[train])
        if kind == "edge-classes":
            return functional.cross_entropy(values(x, train), true)
        if kind == "edge-values":
            return functional.mse_loss(values(x, train), true)
        return functional.binary_cross_entropy_with_logits(values(x, train), true.float())

    check_loss(found, output, reference)
    for own, right in zip(task.module.parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(comm.allreduce(own.grad), right.grad)
    guess = values(torch.from_numpy(output.astype(np.float32)), valid).detach().numpy()
    name, score = {
        "edge-classes": lambda: ("accuracy", (guess.argmax(1) == labels[valid]).mean()),
        "edge-values": lambda: ("mae", truth.mean_absolute_error(labels[valid], guess)),
        "edge-labels": lambda: ("f1", truth.f1_score(labels[valid], guess > 0, average="micro")),
    }[kind]()
    np.testing.assert_allclose(found[2][name], score, rtol=1e-5)
    # Predictions are written for every edge, numbered in the order of the file.
    rows = task.pairs(graph, local(graph, torch.from_numpy(output.astype(np.float32))))
    order = np.lexsort((WHOLE.source, WHOLE.target))
    (written,) = (v for k, v in rows.rows.items() if k in ("values", "probabilities"))
    numbers = np.concatenate(comm.allgather(rows.pairs.number))
    assert np.array_equal(np.sort(numbers), np.arange(160))
    everything = np.concatenate(comm.allgather(written))[np.argsort(numbers)]
    with torch.no_grad():
        dense = values(torch.from_numpy(output.astype(np.float32)), np.arange(160)[order])
        dense = {"edge-classes": dense.softmax(1), "edge-labels": dense.sigmoid()}.get(kind, dense)
    np.testing.assert_allclose(everything, dense.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1, 0])
def test_invalid_node_weights_are_refused(comm, bad):
    """A single invalid weight on any rank, or only zeros."""
    weight = np.zeros(45, np.float32) if bad == 0 else np.ones(45, np.float32)
    weight[np.flatnonzero(TRAIN)[-1]] = bad
    graph = answers(comm, np.ones(45, np.float32), "speed", weight=weight)
    with pytest.raises(InputError, match="--node-weights weight: must be finite and at least 0"):
        find_task(graph, "mae", TaskSettings(target="speed", node_weights="weight"))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_node_weights_of_any_scale(comm, loss):
    """Weights that fit float32, but whose product with an error does not, give the same mean."""
    values = np.random.default_rng(3).normal(size=(2, 45)).astype(np.float32)
    shares = np.random.default_rng(4).uniform(0.5, 2, 45)
    output, found = torch.from_numpy(values[0])[:, None], []
    for size in (1.0, 1e-38, 1e38):
        weight = (shares * size).astype(np.float32)
        graph = answers(comm, values[1], "speed", weight=weight)
        task = Regression(1, "mae", "speed", loss, node_weights="weight")
        rows = task.targets(graph, "train")
        task.check_targets(graph, rows)
        own = task.loss(graph, local(graph, output)[rows], rows)
        found.append(comm.allreduce(float(own)))
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_arguments_from_programs_are_checked_like_options(comm):
    """Each is refused at once, before training on a loss of nan, 0 or another kind."""
    nan = math.nan
    for make, words in (
        (lambda: MultiClass(0), "num_outputs must be an integer of at least 1"),
        (lambda: MultiClass(3, "rmse"), "--metric rmse doesn't fit classes"),
        (lambda: MultiClass(3, class_weights=(1, nan, 1)), "each 0 or from 1e-12 to 1e.12"),
        (lambda: MultiClass(3, class_weights="balanced"), "class_weights takes numbers"),
        (lambda: MultiClass(3, class_weights=2), "class_weights takes numbers"),
        (lambda: MultiClass(3, label_smoothing=nan), r"label_smoothing must be in \[0, 1\]"),
        (lambda: MultiLabel(2, positive_weights=(-1,)), "positive_weights takes numbers"),
        (lambda: MultiLabel(2.0), "num_outputs must be an integer"),
        (lambda: Regression(1, huber_delta=nan), "huber_delta must be above 0"),
        (lambda: Regression(1, target=3), "target must be labels, or the name"),
        (lambda: LinkPrediction(4, negatives=0), "negatives must be an integer of at least 1"),
        (lambda: LinkPrediction(4, metric="best"), "--metric best doesn't fit links"),
        (lambda: EdgeTask(MultiClass(3), 0), "width must be an integer of at least 1"),
        (lambda: EdgeTask("classes", 4), "answer must be a MultiClass, MultiLabel or Reg"),
        (lambda: PairMLP(0, 1), "width must be an integer of at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            make()
    task = MultiClass(3, class_weights=np.array([1, 2, 3]))
    assert task.class_weights == (1.0, 2.0, 3.0)
    graph = answers(comm, WHOLE.labels)
    rows = task.targets(graph, "train")
    with pytest.raises(InputError, match="include class 2, but the task has 2 outputs"):
        MultiClass(2).check_targets(graph, rows)
    with pytest.raises(InputError, match="no training node has a label"):
        task.check_targets(graph, rows[:0])
    with pytest.raises(InputError, match="are 0 for all classes in training"):
        MultiClass(3, class_weights=(0, 0, 0)).check_targets(graph, rows)


def test_the_names_on_the_page_exist():
    (code,) = (code for _, code in blocks("python", "docs/tasks.md"))
    exec(code, {})


def test_mismatched_tasks_are_refused(comm):
    graph = answers(comm, WHOLE.labels)
    for metric, settings, words in (
        ("auc", {}, "--metric auc needs two classes"),
        ("mae", {}, "--metric mae doesn't fit classes: choose accuracy, f1"),
        ("auto", {"class_weights": "1,2"}, "class weights must be 3 numbers, one per class"),
        ("auto", {"class_weights": "0,0,0"}, "--class-weights are 0 for all classes in training"),
        ("auto", {"positive_weights": "2"}, "--positive-weights is for --task labels or edge-l"),
        (
            "auto",
            {"loss": "mae"},
            "--loss is for --task values or edge-values, and this task is cla",
        ),
        (
            "auto",
            {"node_weights": "w"},
            "--node-weights is for --task values, and this task is clas",
        ),
        ("auto", {"negatives": 2}, "--negatives is for --task links, and this task is classes"),
        (
            "auto",
            {"kind": "values", "label_smoothing": 0.1},
            "and this task is values: leave it out",
        ),
        ("auto", {"kind": "links", "target": "speed"}, "--target is for --task classes or labels"),
        ("auto", {"kind": "edge-values", "node_weights": "w"}, "and this task is edge-values"),
        ("auto", {"kind": "labels"}, "--task labels doesn't fit what is to be learned"),
        ("auto", {"target": "speed"}, "the graph has no array of this name: none"),
        ("auto", {"kind": "links"}, "--task links needs a split of the edges"),
        ("auto", {"kind": "edge-values"}, "needs labels and a split of the edges"),
    ):
        with pytest.raises(InputError, match=words):
            find_task(graph, metric, TaskSettings(**settings))
    for wrong in ("1,-2", "1,1e38", "1,nan", "1,1e-45", ""):
        with pytest.raises(
            InputError, match="takes none, balanced, or numbers separated by commas"
        ):
            TaskSettings(class_weights=wrong)
    far = answers(comm, WHOLE.labels, y=np.full(len(WHOLE.labels), 1 << 25))
    with pytest.raises(InputError, match=r"at most 16,777,216 classes .found 33554433"):
        find_task(far, "auto", TaskSettings(target="y"))
    values = find_task(graph, "auto", TaskSettings(kind="values"))  # classes as numbers
    assert isinstance(values, Regression) and values.targets(graph, "train").numel() >= 0
