"""`hpcgnn plan` and its estimator, compared with measured runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch

import hpcgnn
from hpcgnn.cli import main
from hpcgnn.errors import InputError
from hpcgnn.storage.fingerprint import fingerprint, to_hex
from hpcgnn.storage.write import atomic
from hpcgnn.train.config import Config
from hpcgnn.train.plan.answer import answer
from hpcgnn.train.plan.coefficients import IMPORTS, KEPT
from hpcgnn.train.plan.estimate import (
    Shape,
    bytes_per_epoch,
    estimate,
    parameters,
)
from hpcgnn.train.plan.file_shapes import shapes_of_file
from hpcgnn.train.plan.ranks import smallest_ranks
from tests.late import Late
from tests.storage.files import graph_content

pyg = Late("torch_geometric.data")

SAGE = Config.of(model="sage", layers=3, hidden=256, halo_buffer="16MiB")
LARGE = Shape(1, 200_000, 20_000_000, 128, 40, halo=0, volume=0)
SIZES = ["--layers", "3", "--hidden", "128", "--halo-buffer", "16MiB"]


def even(ranks: int) -> Shape:
    share = 200_000 // ranks
    return replace(LARGE, ranks=ranks, nodes=share, edges=100 * share, halo=200_000 - share)


def test_estimates_match_large_measured_runs():
    """GraphSAGE 3x256 on 200,000 nodes and 20 million edges: bytes above imports, largest rank."""
    assert estimate(even(1), SAGE).peak == pytest.approx(934e6, rel=0.15)
    assert estimate(even(4), SAGE).peak == pytest.approx(279e6, rel=0.15)


@pytest.mark.parametrize(
    ("mode", "activation", "measured"),
    [
        ("sar", "relu", 918),
        ("sar", "elu", 1300),
        ("sa", "relu", 1500),
        ("oneshot", "relu", 1700),
    ],
)
def test_estimates_match_measured_attention(mode, activation, measured):
    """GAT 3x(4x128) on 170,000 nodes and 2.5 million edges, 2 ranks: MB above imports."""
    shape = Shape(2, 85_170, 1_273_671, 128, 40, halo=53_189, volume=0)
    gat = Config.of(model="gat", layers=3, hidden=512, heads=4, mode=mode, activation=activation)
    assert estimate(shape, gat).peak == pytest.approx(measured * 1e6, rel=0.1)


@pytest.mark.parametrize("width", [None, 3])
def test_regression_targets_count_as_outputs(tmp_path, width):
    values = np.full((6, width) if width else 6, 0.5)
    masks = {"x": np.ones((6, 2)), "train_mask": np.ones(6, bool)}
    path = hpcgnn.from_scipy(scipy.sparse.eye_array(6), tmp_path / "g.h5", y=values, **masks)
    shape_at, parts, _ = shapes_of_file(path, SAGE.changed(metric="mae", loss="huber"))
    assert shape_at(1).outputs == (width or 1) and parts is None
    with pytest.raises(InputError, match="--metric accuracy doesn't fit numbers"):
        shapes_of_file(path, SAGE.changed(metric="accuracy"))


def test_pairs_and_parts_are_read_from_the_file(tmp_path):
    rng = np.random.default_rng(0)
    target = np.sort(rng.integers(0, 12, 60)) // 3 * 2 + 6 * (rng.random(60) < 0.1)
    kinds = torch.from_numpy(rng.integers(0, 3, 60))
    ends = torch.from_numpy(np.stack([rng.integers(0, 14, 60), target]).astype(np.int64))
    y, mask = torch.zeros(14, dtype=torch.int64), torch.ones(14, dtype=torch.bool)
    data = pyg.Data(x=torch.ones(14, 2), y=y, edge_index=ends, edge_type=kinds, train_mask=mask)
    path = hpcgnn.from_pyg(data, tmp_path / "g.h5")
    config = Config.of(model="rgcn")
    pairs = len({(int(row), int(kind)) for row, kind in zip(ends[1], kinds, strict=True)})
    assert shapes_of_file(path, config)[0](1).pairs_per_edge == pytest.approx(pairs / 60)
    out = str(tmp_path / "p.h5")
    assert main.main(["partition", str(path), "--parts", "2", "--method", "block", "-o", out]) == 0
    shape = shapes_of_file(Path(out), config)[0](2)
    parts = [(7, int((ends[1] // 7 == part).sum())) for part in (0, 1)]
    assert (shape.nodes, shape.edges) in parts
    most = {(part.nodes, part.edges) for part in shape.busiest}
    assert most <= set(parts) and max(edges for _, edges in parts) in {edges for _, edges in most}
    assert 0 < shape.block_edges < shape.edges and shape.pairs_per_edge >= pairs / 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "rgcn"), "needs relations"),
        (("--model", "rgat"), "needs relations"),
        (("--model", "gine"), "needs edge features"),
        (("--metric", "auc"), "needs two classes"),
        (("--metric", "mae"), "doesn't fit classes"),
        (("--class-weights", "1,2"), "class weights must be 5 numbers, one per class"),
        (("--param-groups", "x"), "--param-groups takes PATTERN:lr=X"),
        (("--monitor", "loss_of_sleep"), "--monitor loss_of_sleep is not a metric of any task"),
        (("--split", "1"), "has 1 split"),
        (("--task", "links"), "--task links needs a split of the edges"),
        (("--task", "edge-classes"), "needs labels and a split of the edges"),
        (("--target", "age"), "the graph has no array of this name: none (found 'age')"),
        (("--ignore", "features"), "the graph has no node features"),
        (("--model", "rgcn", "--ignore", "relations"), "reads relations: leave them out"),
        (("--ranks", "200"), "at most 100"),
        (("--ranks", str(1 << 70)), "--ranks must be at most"),
        (("--device", "cuda", "--features-on", "host", "--model", "gin"), "--features-on host"),
    ],
)
def test_settings_that_train_refuses_are_refused(tmp_path, capsys, options, words):
    graph = str(tmp_path / "g.h5")
    size = ["--nodes", "100", "--degree", "4", "--features", "3", "--classes", "5"]
    assert main.main(["generate", "sbm", graph, *size]) == 0
    assert main.main(["plan", graph, "--model", "sage"]) == 0
    assert main.main(["plan", graph, *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    bare = str(tmp_path / "bare.h5")
    assert main.main(["generate", "sbm", bare, *size[:4], "--features", "0", "--classes", "0"]) == 0
    assert main.main(["plan", bare]) == 2
    assert "no labels" in capsys.readouterr().err


def _rewritten(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Replace the values of a dataset, with correct checksums; None removes its group."""
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        array = change(file[name][...])
        del file[name if array is not None else name.partition("/nodes/")[0]]
        if array is not None:
            atomic.OutputFile(file, path).dataset(name, array.dtype, array.shape)[...] = array


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "name", "change", "words"),
    [
        (1, "edges/indptr", lambda a: np.where(np.arange(10) == 5, 0, a), "must not fall"),
        (1, "edges/indptr", lambda a: a[:-1], "must have shape 10"),
        (1, "nodes/split", lambda a: a[:, :1], "must have shape anyx2"),
        (2, "parts/00001/in/counts", lambda a: -a, "must lie in 0"),
        (2, "parts/00001/in/edge_ptr", lambda a: a[::-1].copy(), "must not fall"),
        (2, "parts/00001/nodes/ids", lambda a: None, "must hold the parts 0 .. 1"),
        (2, "exchange/sizes", lambda a: -a, "must lie in 0"),
        (2, "exchange/sizes", lambda a: a + 1, "must add up to"),
        (2, "exchange/in", lambda a: -1 - a, "must lie in 0"),
    ],
)
def test_contradictory_options_are_refused(tmp_path, capsys, parts, name, change, words):
    path = graph_content().write(tmp_path / "g.h5")
    if parts > 1:
        graph = graph_content()
        total = sum(fingerprint(name, array) for name, array in graph.arrays.items())
        graph.attributes["fingerprint"] = to_hex(total)
        graph.write(path)
        cut = ["--parts", "2", "--method", "block", "-o", str(tmp_path / "p.h5")]
        assert main.main(["partition", str(path), *cut]) == 0
        path = tmp_path / "p.h5"
    options = ["--model", "rgcn", "--split", "1"]
    assert main.main(["plan", str(path), *options]) == 0
    _rewritten(path, name, change)
    capsys.readouterr()
    assert main.main(["plan", str(path), *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_changed_header_is_refused(tmp_path, capsys):
    path = graph_content().write(tmp_path / "g.h5")
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        file.attrs["num_edges"] = 19
    assert main.main(["plan", str(path)]) == 2
    assert "the attributes don't match their checksum" in capsys.readouterr().err


def test_the_peak_is_the_sum_of_its_terms_and_grows_with_settings():
    memory = estimate(even(4), SAGE)
    assert memory.peak == sum(vars(memory).values())
    assert memory.halo_buffers == 16 << 20
    for change in ({"hidden": 512}, {"layers": 4}, {"norm": "batch"}, {"model": "gat"}):
        assert estimate(even(4), SAGE.changed(**change)).peak > memory.peak
    assert estimate(replace(even(4), symmetric=False), SAGE).edges == 2 * memory.edges


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_every_model_has_an_estimate(kind):
    shape, found = replace(even(4), relations=3), []
    for hidden in (64, 256):
        config = Config.of(model=kind, hidden=hidden, halo_buffer="16MiB", block="plain")
        found.append(estimate(shape, config))
        more = config.changed(block="res+")
        assert estimate(shape, more).activations >= found[-1].activations
        assert (bytes_per_epoch(replace(shape, volume=1000), config) or 0) > 0
    assert found[0].peak < found[1].peak and found[0].parameters < found[1].parameters


def test_the_fewest_ranks_fit_and_one_rank_less_does_not():
    limit = 500_000_000
    ranks = smallest_ranks(even, SAGE, limit)
    assert ranks is not None and ranks > 1
    assert estimate(even(ranks), SAGE).peak <= limit < estimate(even(ranks - 1), SAGE).peak
    assert smallest_ranks(even, SAGE, 1_000) is None


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[int, Path]:
    """One graph in one part and in two parts."""
    folder = tmp_path_factory.mktemp("plan")
    graph = str(folder / "g.h5")
    sizes = ["--nodes", "20000", "--degree", "50", "--features", "128", "--classes", "40"]
    assert main.main(["generate", "sbm", graph, *sizes]) == 0
    made = {ranks: folder / f"g.p{ranks}.h5" for ranks in (1, 2)}
    for ranks, part in made.items():
        options = ["--parts", str(ranks), "--method", "block", "-o", str(part)]
        assert main.main(["partition", graph, *options]) == 0
    return made


@pytest.mark.parametrize(
    ("ranks", "model"),
    [
        (1, "--model sage"),
        (2, "--model sage"),
        (2, "--model gat --heads 4 --output-heads 16"),
        (1, "--model gcn --norm layer --head linear --jumping max --adversarial-steps 1"),
        (2, "--model gin --norm layer --layers 6 --recompute --keep-in bf16"),
    ],
)
def test_a_small_run_is_within_the_stated_factor(mpirun, parts, tmp_path, capsys, ranks, model):
    options, part = [*model.split(), *SIZES], parts[ranks]
    assert main.main(["plan", str(part), *options, "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["plans"]
    assert planned["halo_from"] == "file"
    above = planned["peak_bytes_per_rank"] - planned["memory_bytes"]["imports"]

    run = tmp_path / "run"
    options = [*options, "--epochs", 2, "--run-dir", run]
    done = mpirun(ranks, "train", part, *options, alone=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    amount, unit = re.search(r"above imports: (?:.* to )?([\d.]+) (\wB)", done.stdout).groups()
    measured = float(amount) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert 0.85 <= above / measured <= 1.3
    assert 0.7 <= IMPORTS / (record["peak_memory_bytes"]["max"] - measured) <= 1.5
    sent = record["bytes_sent"]["mean"] * ranks
    assert 0.9 * planned["sent_bytes"] <= sent <= planned["sent_bytes"]


def test_jobs_that_do_not_fit_are_refused_in_one_line(mpirun, tmp_path, capsys):
    graph = tmp_path / "g.h5"
    size = ["--nodes", 500, "--degree", 4, "--features", 8, "--classes", 3]
    assert mpirun(0, "generate", "sbm", graph, *size).returncode == 0
    assert main.main(["plan", str(graph), "--ranks", "2", "--memory-per-rank", "8GiB"]) == 0
    assert "yes; fewest ranks: 1" in capsys.readouterr().out
    assert main.main(["plan", str(graph), "--ranks", "2", "--memory-per-rank", "64MiB"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"hpcgnn: error: {graph}: does not fit: ") and error.count("\n") == 1
    for wrong in (["--ranks", "0"], ["--memory-per-rank", "much"]):
        assert main.main(["plan", str(graph), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "text.h5").write_text("text")
    assert main.main(["plan", str(tmp_path / "text.h5")]) == 2


@pytest.mark.parametrize(
    ("changes", "ranks", "gradients", "messages", "features"),
    [
        ({"device": "cpu"}, 4, 0, 0, 0),
        ({}, 1, 0, 0, 0),
        ({}, 4, 3, 1, 0),
        ({"gradient_sums": "nccl"}, 4, 0, 1, 0),
        ({"features_on": "host"}, 4, 3, 1, 1),
    ],
)
def test_what_a_gpu_run_keeps_on_the_host_is_planned(changes, ranks, gradients, messages, features):
    config, shape = SAGE.changed(**{"device": "cuda"} | changes), even(ranks)
    (plan,) = answer(lambda _: shape, [ranks], config, None, None).plans
    found = 4 * gradients * parameters(shape, config) + messages * plan.memory.halo_buffers
    assert plan.host == found + features * 4 * shape.nodes * shape.features
    assert plan.as_json()["host_bytes_per_rank"] == plan.host


def test_an_unknown_volume_is_not_invented():
    assert bytes_per_epoch(replace(LARGE, ranks=4, volume=None), SAGE) is None
