"""Whole runs on a GPU, real or fake, which ranks share, beside runs on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcgnn.errors import OutOfMemoryError
from hpcgnn.train import open
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from tests.conftest import forks, jobs_of
from tests.fake_device import device_guard
from tests.graphs import distribute, random_graph
from tests.standing_job import StandingJob
from tests.train import several_commands

COMMON = ["--layers", 3, "--dropout", 0.3, "--seed", 1]
MODELS = [
    "--model sage --norm batch --residual",
    "--model gcn --norm layer --head linear --jumping cat",
    "--model gat --heads 4 --attention-dropout 0.3 --activation elu",
    "--model gatv2 --heads 2 --mode sa",
    "--model gin --norm graph",
    "--model sage --embedding 8 --labels-as-input 0.5 --adversarial-steps 2",
]


@dataclass(frozen=True)
class Machine:
    """Where the tests of this file run: `run(ranks, verb, ...)` with a GPU."""

    run: Callable[..., subprocess.CompletedProcess[str]]
    nodes: int
    hidden: int
    epochs: int
    ranks: tuple[int, ...]


REAL = pytest.param("real", marks=pytest.mark.gpu)


def machines(name: str, fake: list[object], only_real: list[object]) -> pytest.MarkDecorator:
    """Values of `name` for both machines, and some for real GPUs alone, as the fake one is slow."""
    values = [("fake", value) for value in fake]
    values += [pytest.param("real", value, marks=pytest.mark.gpu) for value in [*fake, *only_real]]
    return pytest.mark.parametrize(("machine", name), values, indirect=["machine"])


@pytest.fixture(scope="module")
def fake_jobs(tmp_path_factory, pytestconfig) -> Iterator[Callable[[int], StandingJob]]:
    """`fake_jobs(2)`: the job of 2 ranks on the fake device that runs all commands of this file."""
    if shutil.which("g++") is None or torch.version.cuda is not None:
        pytest.skip("the fake device needs g++ and a torch without CUDA")
    library = device_guard.built(pytestconfig.cache.mkdir("emulator"))
    more = {device_guard.VARIABLE: str(library)}
    first, folder = device_guard.__name__, tmp_path_factory.mktemp
    with (
        forks(first, **more) as python,
        jobs_of("tests.fake_device.main", folder, python, **more) as job,
    ):
        yield job


@pytest.fixture(params=["fake", REAL])
def machine(request, mpirun) -> Machine:
    if request.param == "real":
        request.getfixturevalue("gpu")

        def start(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
            if str(arguments[0]).startswith("tests."):
                return mpirun(ranks, module=arguments[0])
            return mpirun(ranks, *arguments, module=several_commands.__name__)

        return Machine(start, nodes=3000, hidden=32, epochs=6, ranks=(1, 2, 4))
    job = request.getfixturevalue("fake_jobs")

    def run(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = job(ranks).run(*arguments)
        applied = {"train", "predict"}.intersection(arguments)
        assert not applied or done.returncode or "kernels rehearsed" in done.stderr
        assert "loaded late" not in done.stderr, done.stderr
        return done

    return Machine(run, nodes=150, hidden=16, epochs=2, ranks=(2,))


@pytest.fixture
def parts(machine, mpirun, tmp_path) -> dict[int, Path]:
    """A graph in as many parts, at random so that all pairs exchange many rows."""
    graph = tmp_path / "g.h5"
    sizes = ["--nodes", machine.nodes, "--degree", 12, "--features", 24, "--classes", 5]
    done = mpirun(0, "generate", "sbm", graph, *sizes)
    assert done.returncode == 0, done.stderr
    return {ranks: cut(mpirun, graph, ranks) for ranks in {1, *machine.ranks}}


def cut(mpirun, graph: Path, parts: int) -> Path:
    out = graph.with_suffix(f".p{parts}.h5")
    done = mpirun(0, "partition", graph, "-o", out, "--method", "random", "--parts", parts)
    assert done.returncode == 0, done.stderr
    return out


Records = list[dict]
Run = tuple[str, ...]  # options of `train`, in one text or several


@pytest.fixture
def train(machine, mpirun, parts, tmp_path) -> Callable[..., list[Records]]:
    """`train(2, ("--model gat",), ("--model gcn",))`: what metrics.jsonl says of each run.

    They run in one job on the GPU, or with 0 ranks in this process on the CPU. `folders`: names of
    their run directories.
    """

    def run(ranks: int, *runs: Run, folders: list[str] | None = None) -> list[Records]:
        names = folders or [f"{len(list(tmp_path.iterdir()))}.{i}" for i in range(len(runs))]
        commands = [
            [
                "train",
                parts[ranks or 1],
                *COMMON,
                "--hidden",
                machine.hidden,
                "--epochs",
                machine.epochs,
                "--device",
                "cuda" if ranks else "cpu",
                "--run-dir",
                tmp_path / name,
                *" ".join(options).split(),
            ]
            for name, options in zip(names, runs, strict=True)
        ]
        for command in [] if ranks else commands:
            done = mpirun(0, *command)
            assert done.returncode == 0, done.stderr
        if ranks:
            joined = [word for command in commands for word in (*command, several_commands.BETWEEN)]
            done = machine.run(ranks, *joined)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("messages: ") == len(runs), done.stdout
        files = [tmp_path / name / "metrics.jsonl" for name in names]
        return [list(map(json.loads, file.read_text().splitlines())) for file in files]

    return run


def losses(records: Records) -> list[float]:
    return [record["loss"] for record in records]


# Options, those of the GPU alone, and how close losses come.
CASES = [
    (MODELS[1], "", 2e-3),
    ("--model gcn", "", 2e-3),
    (MODELS[2], "", 2e-3),
    (MODELS[5], "", 2e-3),
    (MODELS[3], "--transport staged --halo-buffer 16KiB", 2e-3),
    ("--model gat --heads 4", "--features-on host", 1e-4),
    (MODELS[2], "--precision bf16", 0.05),
]
ON_GPUS_ALONE = [  # the fake device is slow
    (MODELS[0], "", 2e-3),
    (MODELS[3], "", 2e-3),
    (MODELS[4], "", 2e-3),
    ("--model sage", "--features-on host", 1e-4),
    (MODELS[0], "--precision bf16", 0.05),
    (MODELS[3], "--precision tf32", 0.05),
]


@machines("cases", fake=[CASES], only_real=[ON_GPUS_ALONE])
def test_losses_equal_the_cpus_on_any_number_of_ranks(machine, train, cases):
    """Also through pinned memory, with features in host memory, and in less precision."""
    expected = train(0, *((options,) for options, _, _ in cases))
    for ranks in machine.ranks:
        found = train(ranks, *((options, more) for options, more, _ in cases))
        for records, others, (options, more, rtol) in zip(found, expected, cases, strict=True):
            assert len(records) == machine.epochs
            assert all(record["peak_memory_bytes"]["min"] > 0 for record in records)
            np.testing.assert_allclose(
                losses(records), losses(others), rtol=rtol, err_msg=f"{options} {more}"
            )


def test_resumed_runs_give_the_same_bits(machine, train):
    options = f"{MODELS[0]} --checkpoint-every 2 --epochs {machine.epochs + 1}"
    whole, _, resumed = train(
        2, (options,), (options, "--epochs 2"), (options, "--resume"), folders=["a", "cut", "cut"]
    )
    assert losses(resumed) == losses(whole)


def test_losses_equal_those_of_staged_messages_to_the_bit(machine, train, tmp_path):
    """By CUDA IPC, with halo buffers so small that a slot takes many messages."""
    options = MODELS[2], "--halo-buffer 16KiB --epochs 2"
    for ranks in [ranks for ranks in machine.ranks if ranks > 1]:
        folders = [f"ipc{ranks}", f"staged{ranks}"]
        runs = [(*options, f"--transport {way}") for way in ("ipc", "staged")]
        ipc, staged = map(losses, train(ranks, *runs, folders=folders))
        starts = [json.loads((tmp_path / name / "starts.jsonl").read_text()) for name in folders]
        assert [start["transport"] == "CUDA IPC" for start in starts] == [True, False]
        assert ipc == staged


def test_runs_move_between_the_cpu_and_gpus(machine, train):
    """The optimizer's state lies where its kernels read it."""
    options = f"{MODELS[1]} --epochs"
    (expected,) = train(0, (f"{options} 3",))
    for first, second in ((0, 2), (2, 0)):
        folder = [f"from {first}".replace(" ", "-")]
        train(first, (f"{options} 1",), folders=folder)
        train(second, (f"{options} 2 --resume",), folders=folder)
        (found,) = train(first, (f"{options} 3 --resume",), folders=folder)
        np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-3)


def test_predictions(machine, train, mpirun, parts, tmp_path):
    train(0, (MODELS[2],), folders=["run"])
    found, best = {}, tmp_path / "run" / "checkpoints" / "best.h5"
    for device, start, ranks in (("cpu", mpirun, 0), ("cuda", machine.run, 2)):
        out = tmp_path / f"{device}.h5"
        done = start(
            ranks,
            "predict",
            parts[ranks or 1],
            best,
            "-o",
            out,
            "--device",
            device,
            "--correct-and-smooth",
        )
        assert done.returncode == 0, done.stderr
        with h5py.File(out) as file:
            found[device] = file["probabilities"][:]
    np.testing.assert_allclose(found["cuda"], found["cpu"], atol=1e-4)


MODEL_FILE = """
import torch
from hpcgnn.nn.pyg import GATConv, SAGEConv

class Net(torch.nn.Module):
    def __init__(self, graph, hidden=8):
        super().__init__()
        self.first = SAGEConv(graph.features.shape[1], hidden)
        self.second = GATConv(hidden, graph.num_classes)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)
"""


def test_a_model_of_the_users_own_and_label_propagation(machine, train, mpirun, parts, tmp_path):
    file, out = tmp_path / "net.py", tmp_path / "p.h5"
    file.write_text(MODEL_FILE)
    model = f"{file}:Net"
    (expected,), (found,) = (train(n, (f"--model {model}",), folders=[f"own{n}"]) for n in (0, 2))
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-3)
    for given in (tmp_path / "own2", "--model", model), ("--label-propagation",):
        done = machine.run(2, "predict", parts[2], *given, "-o", out, "--force", "--device", "cuda")
        assert done.returncode == 0, done.stderr


def test_relations(machine, mpirun, tmp_path):
    """R-GCN over triples, on learned embeddings."""
    rng = np.random.default_rng(0)
    names, count = tmp_path / "t.tsv", machine.nodes
    triples = [rng.integers(0, limit, 6 * count) for limit in (count, 5, count)]
    np.savetxt(names, np.stack(triples, axis=1), fmt="%d", delimiter="\t")
    columns = {"labels": rng.integers(0, 4, count), "split": rng.integers(1, 4, count)}
    for name, values in columns.items():
        np.save(tmp_path / f"{name}.npy", values.astype(np.int8))
    options = [f"--{name}={tmp_path / name}.npy" for name in columns]
    graph = tmp_path / "r.h5"
    done = mpirun(0, "convert", names, graph, "--format", "triples", "--num-nodes", count, *options)
    assert done.returncode == 0, done.stderr
    found = {}
    for device, start, ranks in (("cpu", mpirun, 0), ("cuda", machine.run, 2)):
        done = start(
            ranks,
            "train",
            cut(mpirun, graph, ranks or 1),
            "--model",
            "rgcn",
            "--layers",
            2,
            "--hidden",
            8,
            "--bases",
            2,
            "--embedding",
            8,
            "--epochs",
            machine.epochs,
            "--device",
            device,
            "--run-dir",
            tmp_path / device,
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        found[device] = losses([json.loads(line) for line in lines])
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=2e-3)


@pytest.mark.gpu
def test_the_profile_holds_kernels_and_messages(gpu, mpirun, tmp_path):
    graph, folder = tmp_path / "g.h5", tmp_path / "run"
    done = mpirun(0, "generate", "sbm", graph, "--nodes", 3000, "--degree", 12)
    assert done.returncode == 0, done.stderr
    options = [*COMMON, *MODELS[2].split(), "--hidden", 32, "--epochs", 4, "--profile", 2]
    part = cut(mpirun, graph, 2)
    done = mpirun(2, "train", part, *options, "--device", "cuda", "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    trace = json.loads((folder / "profile" / "rank-00000.json").read_text())
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    assert any("gat_forward" in event["name"] for event in kernels)
    assert any("ring pack" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.gpu
def test_too_little_memory_is_reported_with_numbers(gpu, comm, tmp_path):
    config = Config.of(model="gat", layers=3, hidden=512, heads=4, epochs=1)
    graph = open.place(distribute(random_graph(20_000, 100_000), comm), gpu, config)
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(100e6 / total, gpu)
    try:
        with pytest.raises(OutOfMemoryError, match=r"asked for .* in use of .* ranks"):
            configured_trainer(graph, config, tmp_path).run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def test_the_table_of_speeds(machine):
    sizes = ["--nodes", machine.nodes, "--edges", 8 * machine.nodes, "--width", machine.hidden]
    sizes += ["--heads", 2, "--channels", machine.hidden // 2, "--repeat", 1]
    sizes += [] if torch.cuda.is_available() else ["--no-peers"]
    done = machine.run(1, "bench", "kernels", "--device", "cuda", *sizes, "--json", "-")
    assert done.returncode == 0, done.stderr
    ours = [row for row in json.loads(done.stdout)["rows"] if row["implementation"] == "hpcgnn"]
    layers = [row for row in ours if not row["operation"].startswith("kernel ")]
    assert len(layers) == 4 and all(row["peak_bytes"] is not None for row in layers)
    assert len(ours) == 4 + 2 * 5  # kernels in float32 and bfloat16


@machines("ranks", fake=[3], only_real=[1, 2, 4])
def test_every_layer(machine, ranks):
    """Output and gradients, on a real GPU in every mode, beside the CPU's."""
    done = machine.run(ranks, "tests.fake_device.layers")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("machine", ["fake"], indirect=True)
def test_an_epoch_synchronises_with_the_host_at_most_twice(machine):
    """On 1, 2 and 3 ranks, on 3 in every mode; and a message of attention takes few launches."""
    done = machine.run(3, "tests.fake_device.synchronisations")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("machine", ["fake"], indirect=True)
@pytest.mark.parametrize("ranks", [1, 2])
def test_rehearsed_layers_leave_a_run_as_it_is(machine, ranks):
    done = machine.run(ranks, "tests.fake_device.own_model")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("machine", ["fake"], indirect=True)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_are_summed_during_backward_with_the_same_bits(machine, ranks):
    done = machine.run(ranks, "tests.fake_device.gradients")
    assert done.returncode == 0, done.stderr[-2000:]
