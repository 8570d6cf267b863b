"""Wrong arguments of Python programs for graphs, models, paths and settings are refused."""

from __future__ import annotations

import pytest
import torch

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.tasks import find_task
from tests.train.test_own_model import Alone, Values, make, part

pytestmark = pytest.mark.mpi


class Returning(Alone):
    """A model whose output is changed by a function."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, graph):
        return self.change(super().forward(graph))


class Growing(Alone):
    """A model that makes a layer in its first pass."""

    def forward(self, graph):
        if not hasattr(self, "late"):
            self.late = torch.nn.Linear(1, 1)
        return self.late(super().forward(graph))


class Task(Values):
    """A task with other targets of a split, or other metrics."""

    def __init__(self, targets=(), metrics=None) -> None:
        self.given, self.found = dict(targets), metrics

    def targets(self, graph, split):
        rows = super().targets(graph, split)
        return torch.tensor(self.given[split]) if split in self.given else rows

    def metrics(self, graph, output, rows, split):
        return self.found or super().metrics(graph, output, rows, split)


def test_wrong_arguments_of_trainer_are_refused_in_one_line(comm, shared_path):
    """Before the first epoch, or in it."""
    for number, (given, words) in enumerate(
        (
            (
                {"task": Values},
                "task must be an object, such as Values.* .found 'the class Values'",
            ),
            ({"task": Task({"valid": [-2]})}, r"targets of valid .* rows .* output .found -2"),
            ({"task": Task({"test": [999]})}, r"targets of test .* which has \d+ .found 999"),
            ({"task": Task(metrics={"rmse": "good"})}, "must be a dictionary of numbers with rmse"),
            ({"task": Task(metrics={"rmse": torch.ones(2)})}, "must be a dictionary of numbers"),
            ({"model": Returning(torch.Tensor.long)}, "must return floating-point numbers .*int64"),
            (
                {"model": Returning(torch.Tensor.detach)},
                "does not depend on the model's parameters",
            ),
            ({"model": Growing()}, "made late.weight, late.bias in its first pass"),
            ({"model": Alone}, "model must be a torch.nn.Module .found 'the class Alone'"),
            ({"losses": 3}, r"losses must be a function of \(trainer, epoch\)"),
            ({"losses": lambda trainer, epoch: []}, "yielded no loss"),
            ({"losses": lambda trainer, epoch: None}, "must yield this rank's share"),
            ({"losses": lambda trainer, epoch: torch.zeros(2)}, "must yield this rank's share"),
            ({"optimizer": 3}, "optimizer must be one of torch.optim"),
            ({"scheduler": "cosine"}, "scheduler must be one of torch.optim.lr_scheduler"),
            ({"callbacks": 3}, "callbacks must be a list"),
            ({"resume": "yes"}, "resume must be True or False .found 'yes'"),
            ({"show": "zz"}, "show must be one of lines, all, nothing, json .found 'zz'"),
            ({"show": None}, "show must be one of"),
            ({"stop": 3}, "stop must be a StopRequest or None .found 'int'"),
            ({"display": None}, "display must be a Display"),
            ({"opened": True}, "opened must be a Run or None"),
        )
    ):
        with pytest.raises(InputError, match=words):
            hpcgnn.Trainer(
                part(comm),
                **{"model": Alone(), "task": Values(), "epochs": 1} | given,
                run_dir=shared_path / str(number),
            ).run()
    with pytest.raises(InputError, match=r"graph must be what hpcgnn.load_partition returns"):
        hpcgnn.Trainer(None, Alone(), Values())
    with pytest.raises(InputError, match="run_dir must be a path"):
        make(comm, 3)
    trainer = make(comm, shared_path / "twice", epochs=1)
    trainer.run()
    with pytest.raises(InputError, match="has already run: to continue, make another"):
        trainer.run()


def test_errors_name_the_type_that_was_given_instead(comm):
    graph, model = part(comm), Alone()
    for call, words in (
        (lambda: hpcgnn.load_partition(None), "path must be a path .found 'NoneType'"),
        (lambda: hpcgnn.partition_graph("g.h5", 2), "comm must be a Communicator"),
        (lambda: hpcgnn.partition_graph(comm, 2), "path must be a path"),
        (lambda: hpcgnn.predict(None, "c.h5"), "graph must be what hpcgnn.load_partition"),
        (lambda: hpcgnn.predict(graph, 3), "checkpoint must be a path"),
        (lambda: hpcgnn.predict(graph, "c.h5", Alone), "model must be a torch.nn.Module"),
        (lambda: hpcgnn.sum_gradients([torch.ones(3)]), "model must be a torch.nn.Module"),
        (lambda: hpcgnn.convert_norms(model, comm), "graph must be what hpcgnn.load_partition"),
        (lambda: hpcgnn.convert_norms(None, graph), "model must be a torch.nn.Module"),
        (lambda: find_task(None), "graph must be what hpcgnn.load_partition"),
    ):
        with pytest.raises(InputError, match=words):
            call()
