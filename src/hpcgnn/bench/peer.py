"""One training of a peer, in an environment that has the peer and not hpcgnn.

    PYTHON -P peer.py NAME FOLDER

FOLDER holds the graph and the initial weights, see `Bench.write_problem`. The last line of output
is a JSON object: the peer's release, seconds and loss of every epoch, bytes in memory after the
imports and at the peak; `{"problem": ...}` if the training fails. This file imports nothing of
hpcgnn.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PEERS = ("DGL", "PyG CSR", "PyG edge_index")
SAMPLERS = ("PyG NeighborLoader", "DGL NeighborSampler")


class GivenProblem:
    """The problem that all train on: graph by target, features, labels, settings, weights."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] = json.loads((folder / "problem.json").read_text())
        device = torch.device(self.settings.get("device", "cpu"))
        names = ("pointer", "source", "features", "labels", "train", "valid")
        arrays = {name: np.load(folder / f"{name}.npy") for name in names}
        loaded = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        self.pointer, self.source = loaded["pointer"], loaded["source"]
        self.features, self.labels = loaded["features"], loaded["labels"]
        self.train, self.valid = loaded["train"], loaded["valid"]
        self.num_nodes = len(self.pointer) - 1
        with np.load(folder / "weights.npz") as weights:
            self.weights = {name: torch.from_numpy(weights[name]) for name in weights.files}

    def with_loops(self) -> None:
        """Give every node exactly one self-loop, as attention and GCN need."""
        target = self.target()
        kept = self.source != target
        loops = torch.arange(self.num_nodes)
        source = torch.cat([self.source[kept].long(), loops])
        target = torch.cat([target[kept], loops])
        order = torch.argsort(target, stable=True)
        self.source = source[order]
        self.pointer = torch.zeros(self.num_nodes + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(target, minlength=self.num_nodes), 0, out=self.pointer[1:])

    def target(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(self.num_nodes), self.pointer.diff())

    @property
    def shapes(self) -> list[tuple[int, int, bool]]:
        """Input and output channels of each convolution, and whether it is the last."""
        s = self.settings
        ends = [s["hidden"]] * (s["layers"] - 1) + [s["classes"]]
        starts = [s["features"], *ends[:-1]]
        last = s["layers"] - 1
        return [(a, b, i == last) for i, (a, b) in enumerate(zip(starts, ends, strict=True))]


def pyg(problem: GivenProblem, *, csr: bool) -> torch.nn.Module:
    """Return a model of PyTorch Geometric's layers; `csr`: on a sparse matrix, not an edge list."""
    layers: Any = importlib.import_module("torch_geometric.nn")
    kind, heads = problem.settings["model"], problem.settings["heads"]

    def conv(a: int, b: int, last: bool) -> torch.nn.Module:
        if kind == "sage":
            return layers.SAGEConv(a, b)
        if kind == "gcn":
            return layers.GCNConv(a, b, cached=True)
        make = {"gat": layers.GATConv, "gatv2": layers.GATv2Conv}[kind]
        channels = b if last else b // heads
        return make(a, channels, heads, concat=not last, add_self_loops=False)

    if kind in ("gat", "gatv2"):
        problem.with_loops()
    n, edges = problem.num_nodes, len(problem.source)
    index: Tensor
    if csr:
        # On a GPU 32-bit indices, where the layer and its sums accept them.
        short = problem.features.is_cuda and kind == "sage"
        begin, source = (x.int() if short else x.long() for x in (problem.pointer, problem.source))
        index = torch.sparse_csr_tensor(begin, source, torch.ones(edges), (n, n))
    else:
        index = torch.stack([problem.source.long(), problem.target()])
    return PeerStack(problem, conv, lambda layer, x: layer(x, index))


def dgl(problem: GivenProblem) -> torch.nn.Module:
    """Return a model of DGL's layers, with weights by PyTorch Geometric's names."""
    library: Any = importlib.import_module("dgl")
    layers: Any = importlib.import_module("dgl.nn")
    kind, heads = problem.settings["model"], problem.settings["heads"]

    def conv(a: int, b: int, last: bool) -> torch.nn.Module:
        if kind == "sage":
            return layers.SAGEConv(a, b, "mean")
        if kind == "gcn":
            return layers.GraphConv(a, b, norm="both")
        if kind == "gatv2":
            raise ValueError("gatv2 is not measured with DGL")
        return DGLAttention(layers, a, b if last else b // heads, heads, last)

    if kind != "sage":
        problem.with_loops()
    ends = (problem.source.long(), problem.target())
    graph = library.graph(ends, num_nodes=problem.num_nodes)
    graph.create_formats_()
    return PeerStack(problem, conv, lambda layer, x: layer(graph, x))


class DGLAttention(torch.nn.Module):
    """DGL's GATConv with the bias added after the heads are joined, as in PyTorch Geometric."""

    def __init__(self, layers: Any, a: int, channels: int, heads: int, last: bool) -> None:
        super().__init__()
        self.conv = layers.GATConv(a, channels, heads, bias=False, allow_zero_in_degree=True)
        self.bias = torch.nn.Parameter(torch.zeros(channels if last else channels * heads))
        self.last = last

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        out = self.conv(graph, x)
        return (out.mean(1) if self.last else out.flatten(1)) + self.bias


class PeerStack(torch.nn.Module):
    """Convolutions with ReLU between them, with the weights of the problem."""

    def __init__(
        self,
        problem: GivenProblem,
        conv: Callable[..., torch.nn.Module],
        call: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(conv(*shape) for shape in problem.shapes)
        self.call = call
        with torch.no_grad():
            for i, layer in enumerate(self.convs):
                prefix = f"convs.{i}."
                given = {
                    name.removeprefix(prefix): value
                    for name, value in problem.weights.items()
                    if name.startswith(prefix)
                }
                take_weights(layer, given)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.convs):
            x = self.call(layer, x)
            if i < len(self.convs) - 1:
                x = x.relu()
        return x


def take_weights(layer: Any, given: dict[str, Tensor]) -> None:
    """Copy all of PyTorch Geometric's weights into a layer of either library."""
    kind = type(layer).__name__
    if kind == "DGLAttention":
        layer.conv.fc.weight.copy_(given["lin.weight"])
        layer.conv.attn_l.copy_(given["att_src"])
        layer.conv.attn_r.copy_(given["att_dst"])
        layer.bias.copy_(given["bias"])
    elif kind == "GraphConv":
        layer.weight.copy_(given["lin.weight"].t())
        layer.bias.copy_(given["bias"])
    elif hasattr(layer, "fc_neigh"):
        layer.fc_neigh.weight.copy_(given["lin_l.weight"])
        layer.fc_self.weight.copy_(given["lin_r.weight"])
        bias = layer.fc_self.bias if layer.fc_self.bias is not None else layer.bias
        bias.copy_(given["lin_l.bias"])
    else:
        layer.load_state_dict(given)


def build(name: str, problem: GivenProblem) -> torch.nn.Module:
    with problem.features.device:
        if name == "DGL":
            return dgl(problem)
        return pyg(problem, csr=name == "PyG CSR")


def release(name: str) -> str:
    of_dgl = name.startswith("DGL")
    module: Any = importlib.import_module("dgl" if of_dgl else "torch_geometric")
    importlib.import_module(f"{module.__name__}.nn")
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()  # it imports more of torch, which counts as imports
    return f"{'DGL' if of_dgl else 'PyG'} {module.__version__}"


def held() -> int:
    """Return the bytes in memory now, without those of mapped files."""
    return of_status("VmRSS") - of_status("RssFile")


def of_status(name: str) -> int:
    """Return bytes of this process from /proc: VmHWM is the peak, VmData the allocated data."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def epochs(problem: GivenProblem, model: torch.nn.Module) -> dict[str, list[float]]:
    """Return seconds and loss of each epoch: forward, backward, Adam; the first is a warm-up."""
    settings = problem.settings
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    labels = problem.labels[problem.train]
    seconds, losses = [], []
    for _ in range(settings["epochs"]):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(problem.features)[problem.train], labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "losses": losses}


def sampled_epochs(name: str, problem: GivenProblem) -> dict[str, list[float]]:
    """Train on samples of neighbours; return seconds, loss and accuracy of each epoch.

    Training stops once the target accuracy is reached. The validation accuracy is computed on the
    whole graph, and its seconds don't count.
    """
    settings = problem.settings
    torch.manual_seed(settings["seed"])
    model = build("DGL" if name == "DGL NeighborSampler" else "PyG edge_index", problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    batches = dgl_batches(problem) if name == "DGL NeighborSampler" else pyg_batches(problem)
    found: dict[str, list[float]] = {"seconds": [], "losses": [], "scores": []}
    for _ in range(settings["epochs"]):
        start, total = time.perf_counter(), 0.0
        model.train()
        for outputs, labels in batches(model):
            loss = functional.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        found["seconds"].append(time.perf_counter() - start)
        found["losses"].append(total / len(problem.train))
        model.eval()
        with torch.no_grad():
            right = (
                model(problem.features)[problem.valid].argmax(1) == problem.labels[problem.valid]
            )
        found["scores"].append(right.double().mean().item())
        if found["scores"][-1] >= settings["target"]:
            break
    return found


Batches = Callable[[Any], Iterator[tuple[Tensor, Tensor]]]


def pyg_batches(problem: GivenProblem) -> Batches:
    """Return an iterator over outputs and labels of batches of training nodes, by PyG."""
    data: Any = importlib.import_module("torch_geometric.data")
    loaders: Any = importlib.import_module("torch_geometric.loader")
    whole = data.Data(
        problem.features, torch.stack([problem.source.long(), problem.target()]), y=problem.labels
    )
    loader = loaders.NeighborLoader(
        whole,
        problem.settings["fanout"],
        input_nodes=problem.train,
        shuffle=True,
        batch_size=problem.settings["batch"],
    )

    def batches(model: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            x = batch.x
            for i, layer in enumerate(model.convs):
                x = layer(x, batch.edge_index)
                x = x.relu() if i < len(model.convs) - 1 else x
            yield x[: batch.batch_size], batch.y[: batch.batch_size]

    return batches


def dgl_batches(problem: GivenProblem) -> Batches:
    """Return the same iterator by DGL."""
    library: Any = importlib.import_module("dgl")
    loading: Any = importlib.import_module("dgl.dataloading")
    ends = (problem.source.long(), problem.target())
    graph = library.graph(ends, num_nodes=problem.num_nodes)
    loader = loading.DataLoader(
        graph,
        problem.train,
        loading.NeighborSampler(problem.settings["fanout"][::-1]),
        batch_size=problem.settings["batch"],
        shuffle=True,
    )

    def batches(model: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for read, written, blocks in loader:
            x = problem.features[read]
            for i, (layer, block) in enumerate(zip(model.convs, blocks, strict=True)):
                x = layer(block, x)
                x = x.relu() if i < len(model.convs) - 1 else x
            yield x, problem.labels[written]

    return batches


def short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text.partition('Tried to allocate ')[2].partition('.')[0]}"[:160]
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        asked = text.partition("you tried to allocate ")[2].split(" ")[0]
        wanted = f": asked for {int(asked) / 1e6:,.1f} MB at once" if asked.isdigit() else ""
        return f"out of memory{wanted}"
    return (text or type(error).__name__)[:160]


def main(name: str, folder: str) -> int:
    # What a library prints must not come after the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        problem_file = json.loads((Path(folder) / "problem.json").read_text())
        torch.set_num_threads(problem_file["threads"])
        found: dict[str, Any] = {"release": release(name), "imports": held()}
        on_gpu = problem_file.get("device") == "cuda"  # its driver maps more memory than there is
        most = problem_file["memory"] + of_status("VmData")
        if not on_gpu:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # an error, not a kill
        problem = GivenProblem(Path(folder))
        if name in SAMPLERS:
            found |= sampled_epochs(name, problem)
        else:
            found |= epochs(problem, build(name, problem))
        found["peak"] = of_status("VmHWM") - of_status("RssFile")
        if on_gpu:
            found |= {"peak": torch.cuda.max_memory_allocated(), "imports": 0}
    except Exception as error:  # any error of a peer is reported in one line
        found = {"problem": short(error)}
    print(json.dumps(found), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
