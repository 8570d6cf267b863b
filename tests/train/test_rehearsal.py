"""Rehearsals of an epoch on a few nodes: what they run, and which errors they raise."""

from __future__ import annotations

import pytest
import torch

from hpcgnn.comm.mirror import Mirror, MirrorTransport
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError, KernelError
from hpcgnn.kernels.chunks import LONGEST
from hpcgnn.models.settings import KINDS
from hpcgnn.sar.aggregation import neighbour_sum
from hpcgnn.train import open, rehearsal
from hpcgnn.train.config import Config
from hpcgnn.train.sample import Kinds, kinds_of_file, sample

CPU = torch.device("cpu")
ALL = Kinds("dense", 6, 3, weights=True, edge_width=2, relations=3)


def test_images_in_a_mirror_send_what_this_rank_sends():
    comm = Mirror(3)
    graph = sample(ALL, Ring(comm, halo_buffer=4096, transport=MirrorTransport(CPU)))
    x = torch.randn(graph.num_local_nodes, 6).requires_grad_()
    y = neighbour_sum(graph, x)
    expected, into = torch.zeros_like(y), torch.zeros(len(x))
    for block in graph.in_edges.blocks:
        rows = torch.arange(len(x)) if block.rows is None else block.rows.long()
        row = torch.repeat_interleave(rows, block.end - block.begin)
        expected.index_add_(0, row, x.detach()[block.columns] * block.weight[:, None])
        into.index_add_(0, row, block.weight)
    torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-3)
    y.sum().backward()  # the reversed graph has the same edges
    torch.testing.assert_close(x.grad, into[:, None].expand_as(x), rtol=1e-4, atol=1e-3)
    comm.close()


def test_rows_of_the_sample_are_divided_without_self_loops_too():
    block = sample(ALL, Ring(Mirror(1))).in_edges.blocks[0]
    row = torch.repeat_interleave(torch.arange(block.num_rows), block.end - block.begin)
    assert torch.bincount(row[row != block.columns]).max() > LONGEST


MORE = [
    {"model": "sage", "aggr": "max", "labels_as_input": 0.5},
    {"model": "gcn", "norm": "layer", "head": "linear", "jumping": "cat", "prune": False},
    {"model": "gat", "attention_dropout": 0.3, "residual": True, "keep_in": "bf16"},
    {"model": "gat", "mode": "sa", "precision": "bf16", "recompute": True},
    {"model": "gatv2", "norm": "batch", "mode": "oneshot", "embedding": 4},
    {"model": "gin", "norm": "graph", "adversarial_steps": 2},
]


@pytest.mark.parametrize("settings", [*({"model": kind} for kind in KINDS), *MORE], ids=str)
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_model_is_rehearsed(settings, ranks):
    """Nothing is changed but memory: neither random numbers nor any other state."""
    config = Config.of(layers=3, hidden=8, heads=2, **settings)
    before = torch.get_rng_state()
    comm = Mirror(ranks)
    rehearsal.run(ALL, comm, config, CPU, outputs=0, trains=True, smooths=True)
    assert torch.equal(torch.get_rng_state(), before)
    comm.close()


@pytest.mark.parametrize("features", ["sparse", "typed", "none"])
def test_graphs_of_other_kinds_are_rehearsed(features):
    kinds = Kinds(features, 6 * (features == "sparse"), 3, weights=False, edge_width=0, relations=0)
    config = Config.of(layers=2, hidden=8, embedding=4 * (features == "none"))
    comm = Mirror(3)
    rehearsal.run(kinds, comm, config, CPU, outputs=5, trains=True, smooths=False)
    comm.close()


@pytest.mark.parametrize("error", [KernelError, InputError, RuntimeError, None])
def test_errors_of_kernels_end_the_run_and_others_do_not(
    graph_file, comm, monkeypatch, capfd, error
):
    seen = []

    def run(kinds, *_, **options):
        seen.append((kinds.width, kinds.outputs, options))
        if error is not None:
            raise error("spmm<float>")

    monkeypatch.setattr(rehearsal, "run", run)
    arguments = graph_file, comm, Config.of(layers=2), CPU
    if error is KernelError:
        with pytest.raises(KernelError, match="spmm"):
            rehearsal.rehearse(*arguments)
    else:
        rehearsal.rehearse(*arguments)
    assert seen == [(7, 4, {"outputs": 0, "trains": True, "smooths": False})]
    assert ("RuntimeError: spmm<float>" in capfd.readouterr().err) is (error is RuntimeError)
    rehearsal.rehearse(graph_file, comm, Config.of(model="net.py:Net"), CPU)
    assert len(seen) == 1  # a user's code must not run on another graph


@pytest.mark.parametrize("missing", [False, True])
def test_cupy_and_kernels_are_loaded_before_the_graph(comm, monkeypatch, missing):
    def fail(device: torch.device) -> None:
        raise KernelError(f"spmm<float> on {device}")

    def library() -> None:
        if missing:
            raise InputError("--device cuda needs CuPy")

    for name, result in (("pick_device", torch.device("cuda", 0)), ("choose_transport", None)):
        monkeypatch.setattr(open, name, lambda *_, result=result: result)
    for name in ("_repeatable", "load_partition"):
        monkeypatch.setattr(open, name, lambda *_, **__: None)
    monkeypatch.setattr(open, "check_library", library)
    error, text = (InputError, "needs CuPy") if missing else (KernelError, "cuda:0")
    with pytest.raises(error, match=text):
        open.open_part("g.h5", comm, Config(), rehearse=fail)


@pytest.fixture
def graph_file(mpirun, tmp_path):
    path = tmp_path / "g.h5"
    sizes = ["--nodes", 60, "--degree", 4, "--features", 7, "--classes", 4]
    assert mpirun(0, "generate", "sbm", path, *sizes).returncode == 0
    return path


def test_the_header_tells_what_a_graph_has(graph_file, mpirun):
    parts = graph_file.with_suffix(".p2.h5")
    assert mpirun(0, "partition", graph_file, "-o", parts, "--parts", 2).returncode == 0
    expected = Kinds("dense", 7, 4, weights=False, edge_width=0, relations=0)
    links = Config.of(task="links", pair_width=9)
    for path in (graph_file, parts):
        assert kinds_of_file(path, Config().task) == expected
        assert kinds_of_file(path, links.task).outputs == 9
