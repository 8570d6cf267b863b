"""`train --model FILE.py:NAME` and `predict` with it; a changed file is reported."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.cli import generate, partition, predict, train
from hpcgnn.errors import InputError
from hpcgnn.partition.load import load_partition
from hpcgnn.partition.pipeline import partition_graph
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.own_model import parse_arguments
from hpcgnn.train.predict import Predictor
from tests.cli.verbs import call

NET = """
import torch
from hpcgnn import nn
from helper import HIDDEN

class Net(torch.nn.Module):
    def __init__(self, graph, hidden=HIDDEN, norm=None):
        super().__init__()
        self.first = nn.SAGEConv(graph.features.shape[1], hidden)
        self.second = nn.SAGEConv(hidden, graph.num_classes)

    def forward(self, graph, x):
        return self.second(graph, torch.relu(self.first(graph, x)))

def make(graph, **arguments):
    return Net(graph, **arguments)

def nothing(graph):
    return 3

def broken(graph):
    raise KeyError("of the user's")
"""


@pytest.fixture
def folder(comm, shared_path):
    """A folder with graph.h5, its partition for these ranks, net.py and the modules it imports."""
    graph = shared_path / "graph.h5"
    call(
        comm, generate, "sbm", graph, "--nodes", 90, "--degree", 6, "--classes", 3, "--features", 5
    )
    if comm.rank == 0:
        (shared_path / "net.py").write_text(NET)
        (shared_path / "helper.py").write_text("HIDDEN = 4\n")
    comm.barrier()
    partition_graph(comm, graph, method="block", out=shared_path / "part.h5")
    comm.barrier()
    return shared_path


@pytest.mark.mpi
def test_a_file_of_the_user_trains_resumes_and_predicts(comm, folder, capsys):
    path, part, run = list(sys.path), folder / "part.h5", folder / "run"
    common = (
        part,
        "--run-dir",
        run,
        "--model",
        f"{folder}/net.py:make",
        "--lr",
        0.05,
        "--model-args",
        "hidden=6,norm=(1, 2)",
        "--set",
        "training.patience=50",
    )
    call(comm, train, *common, "--epochs", 3)
    call(comm, train, *common, "--epochs", 5, "--resume")
    assert sys.path == path and "helper" not in {p.rpartition("/")[2] for p in sys.path}
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]
    call(comm, train, *common[:2], folder / "once", *common[3:], "--epochs", 5)
    assert losses == [json.loads(x)["loss"] for x in (folder / "once/metrics.jsonl").open()]
    found = files.read(run / "checkpoints" / "last.h5")
    assert found.model_file["name"] == "make" and len(found.model_file["sha256"]) == 64
    assert found.config.training.patience == 50
    assert found.arrays["model/first.lin_l.weight"].shape == (6, 5)
    model = ("--model", f"{folder}/net.py:make")
    for verb, unasked in (
        (predict, (part, run, "-o", folder / "p.h5")),
        (train, ("--resume", run)),
        (train, (part, "--run-dir", run, "--resume")),
    ):  # a file named only by a checkpoint or a run directory
        with pytest.raises(
            InputError, match=r"isn't run unless you ask for it: add --model .*net.py:make"
        ):
            call(comm, verb, *unasked)
    with pytest.raises(InputError, match="isn't run unless you ask for it"):
        Predictor(load_partition(part, comm=comm), found, run)
    call(comm, predict, part, run, "-o", folder / "p.h5", *model)
    with h5py.File(folder / "p.h5") as file:
        assert np.array_equal(file["original_ids"][:], np.arange(90))
        np.testing.assert_allclose(file["probabilities"][:].sum(1), 1, rtol=1e-5)
    capsys.readouterr()
    comm.barrier()
    if comm.rank == 0:
        (folder / "other.py").write_text(NET + "# changed\n")
    comm.barrier()
    with pytest.raises(InputError, match=r"other.py has the checksum .*: restore that file"):
        call(comm, predict, part, run, "-o", folder / "q.h5", "--model", f"{folder}/other.py:make")
    if comm.rank == 0:
        (folder / "net.py").write_text(NET + "# changed\n")
    comm.barrier()
    call(comm, train, *common, "--epochs", 6, "--resume")
    assert comm.rank or "net.py has the checksum" in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.parametrize("which", ["net.py", "aside.py"])
def test_files_that_differ_between_ranks_are_refused(comm, folder, monkeypatch, which):
    """The model's file, before it is run, and the modules beside it that it imports."""
    own = folder / str(min(comm.rank, 1))
    if comm.rank < 2:
        own.mkdir()
        (own / "helper.py").write_text("HIDDEN = 4\n")
        (own / "aside.py").write_text("WIDTH = 4\n")
        (own / "net.py").write_text(f"import aside\n{NET}")
        with (own / which).open("a") as file:
            file.write(f"# of {min(comm.rank, 1)}\n")
    comm.barrier()
    monkeypatch.chdir(own)
    what = "files of the model" if which == "net.py" else "files beside that of the model: aside is"
    for name in ("helper", "aside"):
        sys.modules.pop(name, None)
    options = ("--run-dir", folder / "r", "--model", "net.py:make", "--epochs", 1)
    if comm.size == 1:
        call(comm, train, folder / "part.h5", *options)
    else:
        with pytest.raises(InputError, match=f"the ranks have different {what}"):
            call(comm, train, folder / "part.h5", *options)
        assert ("aside" in sys.modules) == (which == "aside.py")
    for name in ("helper", "aside"):
        sys.modules.pop(name, None)


def test_unusable_models_are_refused_in_one_line(comm, folder, mpirun):
    part = folder / "part.h5"
    for model, words, status in (
        (f"{folder}/absent.py:Net", "absent.py: no such file", 2),
        (f"{folder}/net.py:Nett", "net.py: defines no class or function Nett", 2),
        (f"{folder}/net.py:nothing", "nothing must return a torch.nn.Module (found 'int')", 2),
        (f"{folder}/net.py", "--model must be one of sage".replace("sage", "gcn, sage"), 2),
        ("own", "--model own stands for a model made by a Python program", 2),
        (f"{folder}/net.py:broken", "KeyError", 1),
    ):
        done = mpirun(0, "train", part, "--run-dir", folder / "x", "--model", model, "--epochs", 1)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == status and words in last, done.stderr
        assert ("of the user's" in done.stderr and "Traceback" in done.stderr) == (status == 1)
    for text in ("hidden", "hidden=1,hidden=2", "1x=3", "=3"):
        with pytest.raises(InputError, match="--model-args takes NAME=VALUE"):
            parse_arguments(text)
    assert parse_arguments("a=1, b=[1,2],c=x,d='y',e=None") == {
        "a": 1,
        "b": [1, 2],
        "c": "x",
        "d": "y",
        "e": None,
    }


UNFIT = """
import torch
from hpcgnn.nn import SAGEConv

class Net(torch.nn.Module):
    def __init__(self, graph, hidden, *, classes):
        super().__init__()

class OfPyg(torch.nn.Module):
    def __init__(self, inputs, hidden=2):
        super().__init__()
        self.out = torch.nn.Linear(inputs, hidden)

class Widths(torch.nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.first = SAGEConv(in_channels, 2)

class Attributes(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.out = torch.nn.Linear(data.num_node_features, 2)

class Failing(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.out = torch.nn.Linear("2", 2)

class OfData(torch.nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.first = SAGEConv(graph.features.shape[1], graph.num_classes)

    def forward(self, data):
        return self.first(data.x, data.edge_index)

def nothing():
    return None
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("Net", "", "Net needs hidden and classes: give --model-args hidden=VALUE,classes=VALUE"),
        ("Net", "hiden=3", "Net has no argument hiden, .*: did you mean hidden"),
        ("Net", "depth=3", "Net has no argument depth, .*: it takes hidden, classes"),
        ("Net", "graph=3,hidden=1,classes=2", "Net gets the graph as `graph`: leave it out of"),
        (
            "OfPyg",
            "",
            r"unfit.py, line 12: the first argument of OfPyg, here `inputs`, is the graph",
        ),
        ("Widths", "", r"unfit.py, line 17: .*, here `in_channels`, is the graph; .*: InputError"),
        ("Attributes", "", r"line 22: .*, here `data`, is the graph; .*features.shape\[1\]"),
        ("nothing", "", "nothing takes no argument: it is called with the graph"),
        ("OfData", "", r"OfData.forward takes .* write forward\(self, x, edge_index\)"),
    ],
)
def test_what_the_model_is_not_given_is_one_line(comm, folder, name, arguments, words):
    if comm.rank == 0:
        (folder / "unfit.py").write_text(UNFIT)
    comm.barrier()
    model = ("--model", f"{folder}/unfit.py:{name}", "--model-args", arguments)
    with pytest.raises(InputError, match=words):
        call(comm, train, folder / "part.h5", "--run-dir", folder / "x", *model, "--epochs", 1)


def test_an_exception_says_where_the_graph_went(comm, folder):
    (folder / "unfit.py").write_text(UNFIT)
    with pytest.raises(TypeError) as caught:
        call(comm, train, folder / "part.h5", "--model", f"{folder}/unfit.py:Failing")
    assert caught.value.__notes__ == ["Failing is called with the graph, here as `data`"]


GUARD = r'put it under `if __name__ == "__main__":`'


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("hpcgnn.run(lambda comm: None)", "calls hpcgnn.run when it is loaded for its model"),
        ("hpcgnn.load_partition('part.h5')", "calls load_partition when it is loaded"),
        ("hpcgnn.partition_graph(None, 'graph.h5')", "calls partition_graph when"),
        ("import sys; sys.exit(0)", "ends when it is loaded for its model, as a script does"),
    ],
)
def test_a_script_without_guard_does_not_train_when_it_is_loaded(comm, folder, last, words):
    """The line names the file that has no guard: the model's, or one that it imports."""
    if comm.rank == 0:
        (folder / "script.py").write_text(f"import hpcgnn\n{NET}\n{last}\n")
        (folder / "beside.py").write_text("from script import make\n")
        guarded = f"if __name__ == '__main__':\n    {last}\n"
        (folder / "guarded.py").write_text(f"import hpcgnn\n{NET}\n{guarded}")
    comm.barrier()
    part, options = folder / "part.h5", ("--run-dir", folder / "x", "--epochs", 1)
    for file in ("script", "beside"):
        sys.modules.pop("script", None)
        with pytest.raises(InputError, match=f"{words}.*{GUARD}") as caught:
            call(comm, train, part, *options, "--model", f"{folder}/{file}.py:make")
        assert "sys.exit" in last or "script.py" in str(caught.value)
    call(comm, train, part, *options, "--model", f"{folder}/guarded.py:make")


FAILING = """
import hpcgnn
from net import Net

class Failing(Net):
    def forward(self, graph, x):
        rank = graph.comm.rank
        if graph.epoch == 2 and rank == 1:
            raise KeyError(f"of the user's on rank {rank}")
        return super().forward(graph, x)

def main():
    graph = hpcgnn.load_partition("two.h5")
    task = hpcgnn.tasks.find_task(graph)
    hpcgnn.Trainer(graph, Failing(graph), task, run_dir="trained", epochs=3).run()

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("way", ["command", "script"])
def test_an_exception_on_one_rank_ends_all(comm, folder, mpirun, monkeypatch, way):
    """Within seconds, with its own traceback and one line: the other ranks do not hang."""
    monkeypatch.chdir(folder)
    (folder / "failing.py").write_text(FAILING)
    call(comm, partition, "graph.h5", "--parts", 2, "--method", "block", "-o", "two.h5")
    if way == "command":
        options = ("--model", "failing.py:Failing", "--epochs", 3, "--run-dir", "trained")
        done = mpirun(2, "train", "two.h5", *options, timeout=120, alone=True)
    else:
        done = mpirun(2, module="failing", env={"PYTHONPATH": str(folder)}, timeout=120)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("hpcgnn: error: ")]
    assert len(lines) == 1 and "KeyError" in lines[0] and "rank 1" in lines[0], done.stderr
    assert done.stderr.count("Traceback") == 1
    assert 'raise KeyError(f"of the user\'s on rank {rank}")' in done.stderr
    lines = Path("trained/metrics.jsonl").read_text().splitlines()
    ended = [datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in lines]
    assert len(ended) == 1 and time.time() - ended[0] < 60


def test_settings_given_by_set(comm, folder, mpirun):
    part = folder / "part.h5"
    common = ("train", part, "--model", "gcn", "--layers", 1, "--epochs", 1)
    for text, words in (
        ("hidden", "--set takes KEY=VALUE"),
        ("speed=3", "--set speed=3: has an unknown setting"),
        ("model.lr=3", "model.lr"),
        ("lr=fast", "--lr must be a number"),
        ("param_groups=lin.*:lr=x", "--param-groups takes lr=X and weight_decay=X"),
        ("param_groups=absent.*:lr=1", "no parameter has a name that matches"),
    ):
        done = mpirun(0, *common, "--run-dir", folder / "y", "--set", text)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    given = ("--set", "param_groups=*.bias:lr=0,weight_decay=0", "--set", "optimiser.lr=0.5")
    for name, more in (("a", ()), ("b", ("--set", "monitor=loss", "--set", "ema=0.5"))):
        done = mpirun(0, *common, "--run-dir", folder / name, *given, *more)
        assert done.returncode == 0, done.stderr
    found = files.read(folder / "a" / "checkpoints" / "last.h5")
    assert not found.arrays["model/stack.convs.0.bias"].any()  # a learning rate of 0
    table = mpirun(0, "report", "--text", folder / "a", folder / "b").stdout.splitlines()
    differing = {line.split()[0]: line.split()[1:] for line in table if line}
    assert differing["ema"][1] == "0.5" and differing["monitor"] == ["auto", "loss"]
