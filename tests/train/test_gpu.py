"""Whole runs on GPUs, which ranks share where there are more of them, beside runs on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcgnn.errors import OutOfMemoryError
from hpcgnn.train import setup
from hpcgnn.train.config import Config
from hpcgnn.train.loop import Trainer
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.gpu
EPOCHS = 6
COMMON = ["--layers", 3, "--hidden", 32, "--epochs", EPOCHS, "--dropout", 0.3, "--seed", 1]
MODELS = [
    "--model sage --norm batch --residual",
    "--model gcn --norm layer --head linear --jumping cat",
    "--model gat --heads 4 --attention-dropout 0.3 --activation elu",
    "--model gatv2 --heads 2 --mode sa",
    "--model gin --norm graph",
    "--model sage --embedding 8 --labels-as-input 0.5 --adversarial-steps 2",
]


@pytest.fixture
def parts(mpirun, tmp_path) -> dict[int, Path]:
    """A graph cut for 1, 2 and 4 ranks, at random so that all pairs exchange many rows."""
    graph, found = tmp_path / "g.h5", {}
    sizes = ["--nodes", 3000, "--degree", 12, "--features", 24, "--classes", 5]
    done = mpirun(0, "generate", "sbm", graph, *sizes)
    assert done.returncode == 0, done.stderr
    for ranks in (1, 2, 4):
        found[ranks] = tmp_path / f"g.p{ranks}.h5"
        done = mpirun(ranks, "partition", graph, "-o", found[ranks], "--method", "random")
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture
def train(gpu, mpirun, parts, tmp_path):
    """`train(2, "cuda", "--model gat")`: the records of metrics.jsonl."""

    def run(ranks: int, device: str, options: str, *more: object, name: str = "") -> list[dict]:
        folder = tmp_path / (name or f"run{len(list(tmp_path.iterdir()))}")
        done = mpirun(
            ranks, "train", parts[ranks], *COMMON, *options.split(), "--device", device,
            "--run-dir", folder, *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("cuda" in done.stdout) == (device == "cuda"), done.stdout
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.parametrize("options", MODELS)
def test_losses_are_those_of_the_cpu_on_any_number_of_ranks(train, options):
    expected = losses(train(1, "cpu", options))
    assert len(expected) == EPOCHS
    for ranks in (1, 2, 4):
        np.testing.assert_allclose(losses(train(ranks, "cuda", options)), expected, rtol=2e-3)


def test_runs_are_repeated_and_resumed_to_the_bit(train):
    options = MODELS[2] + " --checkpoint-every 3"
    whole = losses(train(2, "cuda", options))
    assert losses(train(2, "cuda", options)) == whole
    train(2, "cuda", options, "--epochs", 3, name="cut")
    assert losses(train(2, "cuda", options, "--resume", name="cut")) == whole


@pytest.mark.parametrize("options", ["--model sage", "--model gat --heads 4"])
def test_features_in_host_memory(train, options):
    expected = losses(train(2, "cuda", options))
    found = losses(train(2, "cuda", options, "--features-on", "host"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("options", MODELS[:4])
def test_short_arithmetic_stays_close(train, options, precision):
    expected = losses(train(1, "cuda", options))
    found = losses(train(2, "cuda", options, "--precision", precision))
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_messages_through_pinned_memory_and_what_is_recorded(train):
    expected = train(2, "cuda", MODELS[2])
    records = train(2, "cuda", MODELS[2], "--transport", "staged", "--halo-buffer", "64KiB")
    np.testing.assert_allclose(losses(records), losses(expected), rtol=1e-4)
    assert all(record["peak_memory_bytes"]["min"] > 0 for record in records)


def test_predictions(train, mpirun, parts, tmp_path):
    train(2, "cuda", MODELS[2], name="run")
    found, best = {}, tmp_path / "run" / "checkpoints" / "best.h5"
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.h5"
        done = mpirun(2, "predict", parts[2], best, "-o", out, "--device", device)
        assert done.returncode == 0, done.stderr
        with h5py.File(out) as file:
            found[device] = file["probabilities"][:]
    np.testing.assert_allclose(found["cuda"], found["cpu"], atol=1e-4)


def test_the_profile_holds_kernels_and_messages(train, tmp_path):
    train(2, "cuda", MODELS[2], "--profile", 2, name="run")
    trace = json.loads((tmp_path / "run" / "profile" / "rank-00000.json").read_text())
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    assert any("attention" in event["name"] for event in kernels)
    assert any("ring pack" in event.get("name", "") for event in trace["traceEvents"])


def test_too_little_memory_is_answered_with_numbers(gpu, comm, tmp_path):
    config = Config(model="gat", layers=3, hidden=512, heads=4, epochs=1)
    graph = setup.place(distribute(random_graph(20_000, 100_000), comm), gpu, config)
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(100e6 / total, gpu)
    try:
        with pytest.raises(OutOfMemoryError, match=r"asked for .* in use of .* ranks"):
            Trainer(graph, config, tmp_path).run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def test_the_table_of_speeds(gpu, mpirun):
    sizes = ["--nodes", 2000, "--edges", 20_000, "--width", 64, "--heads", 2, "--channels", 32]
    done = mpirun(0, "bench", "kernels", "--device", "cuda", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    ours = [row for row in json.loads(done.stdout) if row["implementation"] == "hpcgnn"]
    layers = [row for row in ours if not row["operation"].startswith("kernel ")]
    assert len(layers) == 4 and all(row["peak_bytes"] > 0 for row in layers)
    assert len(ours) == 4 + 2 * 3  # kernels in float32 and bfloat16
