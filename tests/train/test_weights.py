"""Weights exported to PyTorch Geometric's models and back: same outputs, same bits."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.models.build import build_model
from hpcgnn.models.settings import ModelSettings
from hpcgnn.train.weights import export, read_weights, start_from
from tests.cli.verbs import refused
from tests.graphs import distribute, local, random_graph
from tests.late import Late

data_of_pyg, pyg = Late("torch_geometric.data"), Late("torch_geometric.nn")

N, E, F, R = 20, 90, 4, 3


def graph_data() -> data_of_pyg.Data:
    rng = np.random.default_rng(0)
    made = torch.Generator().manual_seed(0)
    data = data_of_pyg.Data(x=torch.randn(N, F, generator=made), y=torch.arange(N) % 3)
    ends = torch.from_numpy(rng.integers(0, N, (2, E)))
    data.edge_index = ends[:, ends[0] != ends[1]]
    data.edge_type = torch.from_numpy(rng.integers(0, R, data.num_edges))
    data.train_mask, data.val_mask = torch.arange(N) < 12, torch.arange(N) >= 12
    data.test_mask = torch.zeros(N, dtype=torch.bool)
    return data


class Relational(torch.nn.Module):
    """Two layers of PyTorch Geometric, which has no such model."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(F, 8), (8, 3)]
        self.convs = torch.nn.ModuleList(pyg.RGCNConv(a, b, R, num_bases=2) for a, b in sizes)

    def forward(self, x, edge_index, edge_type):
        return self.convs[1](self.convs[0](x, edge_index, edge_type).relu(), edge_index, edge_type)


MODELS = {
    "gcn": lambda: pyg.GCN(F, 8, 2, 3),
    "gcn --norm batch --head linear --jumping cat": lambda: pyg.GCN(
        F, 8, 2, 3, norm="batch_norm", jk="cat"
    ),
    "sage --norm layer": lambda: pyg.GraphSAGE(
        F, 8, 2, 3, norm="layer_norm", norm_kwargs={"mode": "node"}
    ),
    "gat --heads 2 --activation elu": lambda: pyg.GAT(F, 8, 2, 3, heads=2, act="elu"),
    "gatv2 --heads 2": lambda: pyg.GAT(F, 8, 2, 3, heads=2, v2=True),
    "gin": lambda: pyg.GIN(F, 8, 2, 3, train_eps=True),
    "rgcn --bases 2": Relational,
}
TRAIN = ("--layers", 2, "--hidden", 8, "--dropout", 0, "--lr", 0.05)


@pytest.fixture(scope="module")
def partition(tmp_path_factory) -> Path:
    from hpcgnn.cli.main import main

    folder = tmp_path_factory.mktemp("export")
    graph = hpcgnn.from_pyg(graph_data(), folder / "g.h5")
    out = folder / "p.h5"
    assert main(["partition", str(graph), "--parts", "1", "--out", str(out)]) == 0
    return out


def trained(mpirun, partition: Path, run: Path, model: str, *options: object) -> Path:
    done = mpirun(0, "train", partition, "--run-dir", run, "--model", *model.split(), *options)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("model", MODELS)
def test_the_model_in_pytorch_geometric_gives_the_same_predictions(
    mpirun, partition, tmp_path, model
):
    run = trained(mpirun, partition, tmp_path / "run", model, *TRAIN, "--epochs", 3)
    out = tmp_path / "w.safetensors"
    done = mpirun(0, "export", run, out)
    assert done.returncode == 0 and "arrays" in done.stdout, done.stderr
    data, theirs = graph_data(), MODELS[model]()
    theirs.load_state_dict(load_file(out))
    extra = (data.edge_type,) if model.startswith("rgcn") else ()
    with torch.no_grad():
        wanted = theirs.eval()(data.x, data.edge_index, *extra).softmax(dim=1)
    done = mpirun(0, "predict", partition, run, "--out", tmp_path / "y.h5")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "y.h5") as file:
        found = torch.from_numpy(file["probabilities"][...])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_run_may_start_from_a_file(mpirun, partition, tmp_path, ending):
    model = "gcn --norm batch --head linear"
    run = trained(mpirun, partition, tmp_path / "first", model, *TRAIN, "--epochs", 2)
    out, again = tmp_path / f"w{ending}", tmp_path / f"again{ending}"
    assert mpirun(0, "export", run, out).returncode == 0
    done = mpirun(
        0,
        "train",
        partition,
        "--run-dir",
        tmp_path / "second",
        "--model",
        *model.split(),
        *TRAIN,
        "--epochs",
        0,
        "--seed",
        9,
        "--init-from",
        out,
    )
    assert done.returncode == 0 and "starts from the weights" in done.stdout, done.stderr
    assert "note: " + str(out) not in done.stderr
    assert (
        mpirun(0, "export", tmp_path / "second" / "checkpoints" / "last.h5", again).returncode == 0
    )
    one, other = read_weights(out), read_weights(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    refused(mpirun(0, "export", run, out), "exists already")
    assert mpirun(0, "export", run, out, "--force").returncode == 0
    archive = tmp_path / "mine.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("mine", "of no model")
    refused(mpirun(0, "export", run, archive, "--force"), "is not a weights file of hpcgnn")
    theirs = out.with_stem("theirs")  # tensors by name, but not exported
    save = torch.save if theirs.suffix == ".pt" else save_file
    save(read_weights(out), theirs)
    kept = theirs.read_bytes()
    refused(mpirun(0, "export", run, theirs, "--force"), "is not a weights file of hpcgnn")
    assert theirs.read_bytes() == kept
    refused(mpirun(0, "export", run, tmp_path / "w.bin"), "must end in .safetensors or .pt")


def fresh(comm, **settings):
    graph = distribute(random_graph(23, 60, width=F), comm)
    return graph, build_model(ModelSettings(**settings), graph, 3, seed=0)


@pytest.mark.mpi
def test_names_that_differ_are_listed(comm, shared_path):
    graph, model = fresh(comm, kind="gcn", layers=2, hidden=8)
    path = shared_path / "w.pt"
    given = {
        "convs.0.lin.weight": torch.full((8, F), 2.0, dtype=torch.float64),
        "convs.1.lin.weight": torch.zeros(7, 8),
        "lin.bias": torch.zeros(3),
        "norms.0.module.num_batches_tracked": torch.tensor(4),
    }
    if comm.rank == 0:
        torch.save({"state_dict": given}, path)
    comm.barrier()
    told = start_from(model, graph.node_ids, path, comm)
    assert (told.missing, told.unknown) == (["convs.0.bias", "convs.1.bias"], ["lin.bias"])
    assert told.reshaped == ["convs.1.lin.weight"] and len(told.lines(path)) == 3
    assert (model.stack.convs[0].lin.weight == 2).all()


@pytest.mark.mpi
def test_each_rank_loads_the_embeddings_of_its_nodes(comm, shared_path):
    graph, model = fresh(comm, kind="sage", layers=2, hidden=8, embedding=5)
    rows, path = (
        torch.randn(23, 5, generator=torch.Generator().manual_seed(1)),
        shared_path / "w.pt",
    )
    if comm.rank == 0:
        torch.save({"inputs.embedding.weight": rows}, path)
    comm.barrier()
    start_from(model, graph.node_ids, path, comm)
    assert torch.equal(model.inputs.embedding.weight, local(graph, rows))


@pytest.mark.mpi
def test_averages_are_exported_for_embeddings_too(comm, shared_path):
    """They are the numbers that predictions use, whichever ranks hold the rows."""
    graph = replace(distribute(random_graph(23, 60, width=F), comm), graph_fingerprint="f" * 16)
    run = {"run_dir": shared_path, "epochs": 3, "lr": 0.1, "ema": 0.5}
    settings = ModelSettings(kind="sage", layers=2, hidden=8, embedding=5)
    raw = build_model(settings, graph, 3, seed=0)
    hpcgnn.Trainer(graph, raw, hpcgnn.tasks.find_task(graph), **run).run()
    out = shared_path / "w.safetensors"
    if comm.rank == 0:
        export(shared_path, out)
    comm.barrier()
    averaged = build_model(settings, graph, 3, seed=1)
    hpcgnn.predict(graph, shared_path, averaged)
    started = build_model(settings, graph, 3, seed=2)
    start_from(started, graph.node_ids, out, comm)
    for name, value in averaged.state_dict().items():
        assert torch.equal(started.state_dict()[name], value), name
        assert not value.numel() or not torch.equal(raw.state_dict()[name], value), name


class Tied(torch.nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = hpcgnn.nn.SAGEConv(F, F)
        self.second = hpcgnn.nn.SAGEConv(F, 3)
        self.before = torch.nn.Linear(F, F)
        self.after = torch.nn.Linear(F, F)
        self.after.weight = self.before.weight

    def forward(self, graph, x):
        return self.second(graph, self.after(self.first(graph, self.before(x)).relu()))


@pytest.mark.mpi
def test_averages_of_tied_weights_are_exported_under_both_names(comm, shared_path):
    graph = replace(distribute(random_graph(23, 60, width=F), comm), graph_fingerprint="f" * 16)
    out = shared_path / "w.pt"
    for epochs in (2, 4):
        torch.manual_seed(0)
        run = {"run_dir": shared_path, "lr": 0.1, "ema": 0.5, "resume": epochs > 2}
        raw = Tied()
        hpcgnn.Trainer(graph, raw, hpcgnn.tasks.find_task(graph), epochs=epochs, **run).run()
    if comm.rank == 0:
        export(shared_path, out)
        found = read_weights(out)
        assert torch.equal(found["before.weight"], found["after.weight"])
        assert not torch.equal(found["after.weight"], raw.after.weight)
    comm.barrier()
    averaged = Tied()
    hpcgnn.predict(graph, shared_path, averaged)
    assert torch.equal(averaged.after.weight, read_weights(out)["after.weight"])


class Trap:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def forged(path: Path, kind: str) -> None:
    good = {"convs.0.lin.weight": torch.ones(8, F)}
    if kind == "pickle":
        torch.save({"convs.0.lin.weight": Trap()}, path)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Trap()))
    elif kind == "compressed":
        torch.save(good, path)
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in members.items():
                new.writestr(name, content)
    elif kind == "cut":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "list":
        torch.save([torch.ones(2)], path)
    elif kind == "sparse":
        torch.save({"convs.0.lin.weight": torch.eye(3).to_sparse()}, path)
    elif kind == "meta":
        torch.save({"convs.0.lin.weight": torch.ones(8, F, device="meta")}, path)
    elif kind == "nothing":
        torch.save({"a": torch.ones(1)}, path)
    elif kind == "huge":
        torch.save({"convs.0.lin.weight": torch.ones(1).expand(1 << 40, 8)}, path)
    elif kind == "not finite":
        torch.save({"convs.0.lin.weight": torch.full((8, F), np.nan)}, path)
    elif kind == "header":
        path.write_bytes((1 << 60).to_bytes(8, "little") + b"{")
    elif kind == "offsets":
        save_file(good, path)
        path.write_bytes(path.read_bytes().replace(b"[0,128]", b"[0,999]"))


FORGED = {
    "pickle": "can't be read",
    "bare pickle": "can't be read",
    "compressed": "is compressed",
    "cut": "can't be read",
    "list": "must hold tensors by name",
    "sparse": "must hold plain",
    "meta": "must hold plain",
    "nothing": "no parameter that fits",
    "huge": "no parameter that fits",
    "not finite": "is not finite",
    "header": "can't be read",
    "offsets": "can't be read",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", FORGED)
def test_malicious_files_are_refused_in_one_line(comm, tmp_path, capfd, kind):
    path = tmp_path / ("w.safetensors" if kind in ("header", "offsets") else "w.pt")
    forged(path, kind)
    graph, model = fresh(comm, kind="gcn", layers=2, hidden=8)
    with pytest.raises(InputError) as caught:
        start_from(model, graph.node_ids, path, comm)
    message = str(caught.value)
    assert FORGED[kind] in message and str(path) in message and "\n" not in message
    assert "code of the file ran" not in capfd.readouterr().out
