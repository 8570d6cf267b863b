"""The user's own model, optimizer and task get all that `train` offers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch.nn import functional
from torch.optim import lr_scheduler

import hpcgnn
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, NumericalError
from hpcgnn.tasks import find_task
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.optimisation import check_rows, clip_gradients
from hpcgnn.train.stop import StopRequest
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
WHOLE = random_graph(40, 160, seed=1)


def part(comm: Communicator, mode: str = "sar"):
    return replace(distribute(WHOLE, comm, mode=mode), graph_fingerprint="f" * 16)


class Net(torch.nn.Module):
    """A model with learned rows besides features, torch's norm and dropout, a frozen weight."""

    def __init__(self, graph, dropout: float = 0.0, width: int = 3) -> None:
        super().__init__()
        self.embedding = hpcgnn.nn.Embedding(graph, width, seed=5) if width else None
        self.first = hpcgnn.nn.SAGEConv(5 + width, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.second = hpcgnn.nn.GATConv(6, 3, heads=1)
        self.frozen = torch.nn.Linear(3, 3, bias=False)
        self.frozen.weight.requires_grad = False
        self.dropout = dropout

    def hidden(self, graph, x):
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(graph)], dim=1)
        return torch.relu(self.norm(self.first(graph, x)))

    def embed(self, graph):
        return self.hidden(graph, graph.features)

    def forward(self, graph, x):
        x = functional.dropout(self.hidden(graph, x), self.dropout, self.training)
        return self.frozen(self.second(graph, x))


OPTIMIZERS = {
    "momentum": (
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    ),
    "amsgrad": (
        lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.CosineAnnealingLR(o, 5)], [3]
        ),
    ),
    "adafactor": (
        lambda p: torch.optim.Adafactor(p, lr=0.02),
        lambda o: lr_scheduler.MultiStepLR(o, [3, 6]),
    ),
    "plateau": (
        lambda p: torch.optim.NAdam(p, lr=0.02),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, "max", patience=0),
    ),
    "none": (lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5), None),
}


class Counter:
    """A callback with a state."""

    def __init__(self) -> None:
        self.seen = 0

    def on_epoch(self, trainer, record) -> None:
        self.seen += 1
        record["seen"] = self.seen

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state) -> None:
        self.seen = state["seen"]


def train(comm, folder, *, kind="plateau", dropout=0.0, mode="sar", **given):
    """Return records by epoch and all numbers of every rank; weights differ at first."""
    graph = part(comm, mode)
    torch.manual_seed(comm.rank + given.get("epochs", 8))
    width = 0 if kind == "adafactor" else 3  # which keeps state over all rows together
    model = hpcgnn.convert_norms(Net(graph, dropout, width), graph)
    if comm.rank == 0:  # the only weights that count, whatever the seed was
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for layer in (model.first, model.second, model.frozen):
                layer.reset_parameters()
    make_optimizer, make_scheduler = OPTIMIZERS[kind]
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    trainer = hpcgnn.Trainer(
        graph,
        model,
        find_task(graph),
        optimizer=optimizer,
        scheduler=None if make_scheduler is None else make_scheduler(optimizer),
        run_dir=folder,
        callbacks=[Counter()],
        **{"epochs": 8, "clip_norm": 0.5, "ema": 0.8, "warmup": 2, "checkpoint_every": 0} | given,
    )
    trainer.run()
    comm.barrier()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [
        v.detach().flatten().double()
        for n, v in trainer.learned.state_dict().items()
        if n not in trainer.learned.sharded_names()
    ]
    averages = [v.flatten().double() for _, v in sorted(trainer.average.values.items())]
    names = ("loss", "train", "valid", "seen")
    records = [tuple(record[name] for name in names) for record in map(json.loads, lines)]
    return records, torch.cat([*kept, *averages]), trainer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_and_scheduler_resume_with_the_same_bits(comm, shared_path, kind):
    records, numbers, whole = train(comm, shared_path / "a", kind=kind, dropout=0.3)
    assert len(records) == 8 and records[-1][-1] == 8
    train(comm, shared_path / "b", kind=kind, dropout=0.3, epochs=3)
    again, same, resumed = train(comm, shared_path / "b", kind=kind, dropout=0.3, resume=True)
    assert again == records
    assert torch.equal(same, numbers)
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert rates == [group["lr"] for group in resumed.optimizer.param_groups]


def test_a_run_is_resumed_on_another_number_of_ranks(comm, shared_path):
    records, _, _ = train(comm, shared_path / "a")
    train(comm, shared_path / "b", epochs=3)
    if comm.rank == 0:
        again, _, _ = train(Communicator(MPI.COMM_SELF), shared_path / "b", resume=True)
        np.testing.assert_allclose([r[0] for r in again], [r[0] for r in records], atol=1e-4)
    comm.barrier()


def test_modes_give_the_same_losses(comm, shared_path):
    losses = [
        [r[0] for r in train(comm, shared_path / mode, mode=mode, epochs=4)[0]]
        for mode in ("sar", "sa", "oneshot")
    ]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-5)


def test_groups_of_ranks_train_separately(comm, shared_path):
    """Each of two halves of the ranks has its own mpi4py communicator."""
    half = MPI.COMM_WORLD.Split(comm.rank % 2)
    own = Communicator.of(half)
    folder = shared_path / str(comm.rank % 2)
    records, _, _ = train(own, folder, epochs=2)
    assert len(records) == 2
    comm.barrier()


def test_predictions_use_the_averaged_weights(comm, shared_path):
    _, _, trainer = train(comm, shared_path, epochs=3)
    graph = part(comm)
    model = hpcgnn.convert_norms(Net(graph), graph)
    last = shared_path / "checkpoints" / "last.h5"
    found = hpcgnn.predict(graph, last, model, out=shared_path / "p.npz", embeddings=True)
    with trainer.average.applied(), torch.no_grad():
        trained = trainer.learned.modules[""].eval()
        expected = trained(trainer.graph, trainer.graph.features)
        embedded = trained.embed(trainer.graph)
    probabilities = torch.softmax(expected, dim=1)
    assert torch.equal(torch.from_numpy(found.rows["probabilities"]), probabilities)
    assert found.scores["valid"] == trainer.scores["valid"]["accuracy"]
    comm.barrier()
    written = np.load(shared_path / "p.npz")
    for name, rows in (("probabilities", probabilities), ("embeddings", embedded)):
        np.testing.assert_array_equal(written[name], collect(graph, rows).numpy())
    with pytest.raises(InputError, match=r"was trained by a Python program: .*graph, run, model"):
        hpcgnn.predict(graph, last)


def test_gradients_are_clipped_by_the_norm_over_all_ranks(comm):
    """Compared with torch on one process; learned rows of all ranks count, replicated ones once."""
    rng = np.random.default_rng(0)
    rows, shared = rng.normal(size=(40, 3)), rng.normal(size=(4, 2))
    expected = [torch.nn.Parameter(torch.zeros(a.shape)) for a in (rows, shared)]
    for parameter, grad in zip(expected, (rows, shared), strict=True):
        parameter.grad = torch.from_numpy(grad).float()
    norm = torch.nn.utils.clip_grad_norm_(expected, 2.0)
    graph = part(comm)
    own = [hpcgnn.nn.Embedding(graph, 3, 0).weight, torch.nn.Parameter(torch.zeros(4, 2))]
    own[0].grad, own[1].grad = local(graph, rows).float(), torch.from_numpy(shared).float()
    assert clip_gradients(own, 2.0, comm) == pytest.approx(float(norm), rel=1e-6)
    torch.testing.assert_close(collect(graph, own[0].grad), expected[0].grad)
    torch.testing.assert_close(own[1].grad, expected[1].grad)


def test_converted_norms_equal_those_of_one_process(comm):
    rows = torch.from_numpy(np.random.default_rng(1).normal(2, 3, (40, 5))).float()
    weights = torch.from_numpy(np.random.default_rng(2).normal(size=(40, 5))).float()
    graph, alone = part(comm), torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.ReLU())
    torch.nn.init.normal_(alone[0].weight, generator=torch.Generator().manual_seed(3))
    ours = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.ReLU())
    ours.load_state_dict(alone.state_dict())
    parameters = list(ours.parameters())
    hpcgnn.convert_norms(ours, graph)
    assert all(a is b for a, b in zip(parameters, ours.parameters(), strict=True))
    for _ in range(2):
        x, own = rows.clone().requires_grad_(), local(graph, rows).requires_grad_()
        expected, found = alone(x), ours(own)
        (expected * weights).sum().backward()
        (found * local(graph, weights)).sum().backward()
        torch.testing.assert_close(collect(graph, found), expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(collect(graph, own.grad), x.grad, atol=1e-5, rtol=1e-5)
    hpcgnn.sum_gradients(ours, comm)
    for name, parameter in alone.named_parameters():
        found = dict(ours.named_parameters())[name].grad
        torch.testing.assert_close(found, parameter.grad, atol=1e-4, rtol=1e-4)
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)


class Values:
    """A task that is a plain object: one number per node, with mean squared error."""

    metric, larger_is_better = "rmse", False

    def targets(self, graph, split):
        mask = {"train": graph.train_mask, "valid": graph.valid_mask, "test": graph.test_mask}
        return torch.nonzero(mask[split]).flatten()

    def loss(self, graph, output, rows):
        if len(rows) == 0:
            return torch.tensor(0.0)  # of an empty output, on a rank without targets
        wanted = graph.features[rows, 0]
        return ((output[:, 0] - wanted) ** 2).sum() / 10

    def metrics(self, graph, output, rows, split):
        error = float(((output[:, 0] - graph.features[rows, 0]) ** 2).sum())
        total = graph.comm.allreduce(np.array([error, len(rows)]))
        return {"rmse": float(np.sqrt(total[0] / total[1])), "count": total[1]}


class Alone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = hpcgnn.nn.GCNConv(5, 1)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, graph):
        return self.conv(graph, graph.features)


def make(comm, folder, model=None, task=None, **given):
    torch.manual_seed(0)
    return hpcgnn.Trainer(
        part(comm),
        Alone() if model is None else model,
        task or Values(),
        run_dir=folder,
        **{"epochs": 3, "lr": 0.05} | given,
    )


def test_a_task_with_only_three_methods(comm, shared_path, tmp_path, capsys):
    curves = []
    for one, folder in ((comm, shared_path), (Communicator(MPI.COMM_SELF), tmp_path)):
        trainer = make(one, folder, epochs=5)
        trainer.run()
        comm.barrier()
        curves.append([json.loads(line) for line in (folder / "metrics.jsonl").open()])
    for ours, alone in zip(*curves, strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert ours["valid"] == pytest.approx(alone["valid"], abs=1e-5)
        assert ours["metrics"]["test"]["count"] == int((WHOLE.split == 3).sum())
    smallest = min(curves[0], key=lambda record: record["valid"])["epoch"]
    assert curves[0][-1]["best_epoch"] == smallest  # smaller is better
    if comm.rank == 0:
        said = capsys.readouterr().out
        assert "note: the loss doesn't depend on unused.bias, unused.weight: not trained" in said
        assert "best valid rmse" in said and "%" not in said
    found = hpcgnn.predict(trainer.graph, tmp_path, Alone())
    assert found.rows["output"].shape == (trainer.graph.num_local_nodes, 1)


def test_early_stopping_on_any_metric_in_either_direction(comm, shared_path):
    still = {"lr": 0.0, "patience": 2, "epochs": 9}
    for number, given in enumerate(
        (
            {"monitor": "loss"},
            {"monitor": "valid_loss"},
            {"monitor": "count", "better": "larger"},
            {"better": "larger"},
        )
    ):
        trainer = make(comm, shared_path / str(number), **still | given)
        trainer.run()
        assert (trainer.epoch, trainer.progress.best_epoch) == (3, 1)
    with pytest.raises(InputError, match="--monitor count needs --better larger or"):
        make(comm, shared_path / "x", monitor="count")
    with pytest.raises(InputError, match="not a metric of the task, which has rmse, count, loss"):
        make(comm, shared_path / "y", monitor="speed", better="larger").run()


def test_several_losses_add_up(comm, shared_path):
    """Two halves of the loss, each from its own pass, add up to the loss."""

    def halves(trainer, epoch):
        yield 0.5 * trainer.loss(trainer.output())
        yield 0.5 * trainer.loss(trainer.output())

    class Two(Values):
        def loss(self, graph, output, rows):
            return ((output[:, 0] - graph.features[rows, 0]) ** 2).sum() / 10

    runs = [
        make(comm, shared_path / name, task=Two(), losses=losses)
        for name, losses in (("a", None), ("b", halves))
    ]
    for trainer in runs:
        trainer.run()
    one, two = (torch.cat([p.detach().flatten() for p in t.parameters]) for t in runs)
    torch.testing.assert_close(one, two)


@pytest.mark.several_ranks
def test_different_numbers_of_losses_are_counted(comm, shared_path):
    def losses(trainer, epoch):
        loss = 0.5 * trainer.loss(trainer.output())
        return [loss, loss][: 2 if comm.rank else 1]

    with pytest.raises(InputError, match="yielded 1 loss on rank 0 and at least 2 on rank 1"):
        make(comm, shared_path, losses=losses).run()


def test_untrainable_models_are_refused_by_name(comm, shared_path):
    pyg = pytest.importorskip("torch_geometric.nn")
    frozen = Alone().requires_grad_(False)
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    loose, listed = Alone(), Alone()
    loose.scale = torch.ones(3, requires_grad=True)
    listed.layers = [torch.nn.Linear(3, 3)]
    half = Alone().bfloat16()
    compiled = torch.nn.Sequential(torch.nn.Sequential(hpcgnn.nn.SAGEConv(5, 3)))
    compiled[0].compile()
    foreign = torch.nn.Sequential(pyg.SAGEConv(5, 3))
    other = torch.optim.Adam(Alone().parameters())
    cases = [
        ({"model": frozen}, "has no parameter to train"),
        ({"model": lazy}, "0.weight has no shape yet"),
        (
            {"model": loose},
            "the model's scale requires a gradient but is not a registered parameter",
        ),
        ({"model": listed}, "the model's layers requires .* a torch.nn.ModuleList"),
        ({"model": half}, r"conv.* can't be kept in a checkpoint: its type is torch.bfloat16"),
        ({"model": compiled}, "0 is compiled by torch.compile, which can't"),
        ({"model": foreign}, "the model's 0 is PyTorch .* import SAGEConv from hpcgnn.nn.pyg"),
        ({"optimizer": other}, "the optimizer has parameters that belong neither to the"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the loss several times"),
        (
            {"optimizer": torch.optim.SGD, "lr": 0.1},
            "lr, weight_decay and schedule are for",
        ),
        ({"task": object()}, "task object lacks the method targets"),
        ({"speed": 3}, "Trainer has no setting speed"),
        ({"patience": -1}, "--patience must be at least 0"),
        ({"callbacks": [3]}, "a callback must be a function"),
    ]
    if comm.size > 1:
        norm = torch.nn.Sequential(torch.nn.BatchNorm1d(5))
        cases.append(({"model": norm}, r"0 \(BatchNorm1d\) normalises .* hpcgnn.convert_norms"))
        graph_norm = torch.nn.Sequential(hpcgnn.nn.SAGEConv(5, 3), pyg.GraphNorm(3))
        cases.append(({"model": graph_norm}, r"1 \(GraphNorm\) normalises .* hpcgnn.nn.GraphNorm"))
    for given, words in cases:
        with pytest.raises(InputError, match=words):
            torch.manual_seed(0)
            hpcgnn.Trainer(
                part(comm),
                given.pop("model", None) or Alone(),
                given.pop("task", None) or Values(),
                run_dir=shared_path,
                **given,
            )


def test_training_without_gradients_is_refused(comm, shared_path):
    trainer = make(comm, shared_path)
    with (
        torch.no_grad(),
        pytest.raises(InputError, match="training was called under torch"),
    ):
        trainer.run()


def test_masks_changed_after_the_trainer_read_them_are_refused(comm, shared_path):
    trainer = make(comm, shared_path)
    trainer.graph.valid_mask.logical_not_()
    with pytest.raises(InputError, match=r"graph\.valid_mask was changed in place"):
        trainer.run()


def test_an_optimizer_that_couples_rows_of_ranks_is_refused(comm, shared_path):
    graph = part(comm)
    model = hpcgnn.convert_norms(Net(graph), graph)
    with pytest.raises(InputError, match="combines the learned rows of a rank in its update"):
        hpcgnn.Trainer(
            graph, model, find_task(graph), optimizer=torch.optim.Adafactor, run_dir=shared_path
        )
    rows = model.embedding.weight
    optimizer = torch.optim.SGD([rows])
    optimizer.state[rows] = {"by_row": torch.zeros(len(rows), 1), "number": torch.zeros(())}
    check_rows(optimizer)
    optimizer.state[rows]["of_columns"] = torch.zeros(len(rows) + 1, 3)
    with pytest.raises(
        InputError, match="combines the learned rows of a rank in its state of_columns"
    ):
        check_rows(optimizer)


def test_the_module_of_the_first_nan_is_named(comm, shared_path):
    trainer = make(comm, shared_path)
    with torch.no_grad():
        trainer.model.conv.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="the loss is nan in epoch 1, first in conv on rank"):
        trainer.run()


def test_signals_and_callbacks_stop_training(comm, shared_path):
    stop = StopRequest()
    stop.reason = "SIGUSR1" if comm.rank == comm.size - 1 else ""
    assert make(comm, shared_path / "a", stop=stop).run() is False
    comm.barrier()
    assert (shared_path / "a" / "REQUEUE").exists()

    def enough(trainer, record):
        if record["epoch"] == 2 and comm.rank == 0:
            trainer.request_stop("enough")

    trainer = make(comm, shared_path / "b", callbacks=[enough])
    assert trainer.run() is False and trainer.epoch == 2
    assert make(comm, shared_path / "b", resume=True).run() is True
    with pytest.raises(InputError, match="holds the checkpoints of a run"):
        make(comm, shared_path / "b")


def test_states_of_unsupported_types_are_refused(comm, shared_path):
    train(comm, shared_path, epochs=2)
    if comm.rank == 0:
        path = shared_path / "checkpoints" / "epoch-000002.h5"
        found = files.read(path)
        assert found.state["rate"]["scheduler"] and found.state["callbacks"]
    comm.barrier()
    with pytest.raises(
        InputError, match=r"its state of optimizer.* can't be used|belongs to another"
    ):
        train(comm, shared_path, kind="momentum", resume=True)


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = hpcgnn.nn.GATConv(5, 3, dropout=0.3)
        self.dropout = hpcgnn.nn.Dropout(0.3)

    def forward(self, graph, x):
        return self.dropout(graph, self.first(graph, x))


def test_without_a_seed_all_ranks_use_rank_0s_dropout_masks(comm, shared_path):
    graph = part(comm)
    torch.manual_seed(comm.rank)
    model = Masked()
    own = comm.allgather((model.first.layer, model.dropout.layer))
    hpcgnn.Trainer(graph, model, find_task(graph), run_dir=shared_path, epochs=1).run()
    assert comm.allgather((model.first.layer, model.dropout.layer)) == [own[0]] * comm.size
