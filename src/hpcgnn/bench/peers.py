"""The same operations by peer libraries, each in a process of its own.

`python -m hpcgnn.bench.peers NAME CASE` (CASE: the fields as JSON) is such a process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor

from hpcgnn import system
from hpcgnn.bench.timing import Sample, Timer, local
from hpcgnn.errors import warn

Layer = Callable[[Tensor], Tensor]
Operations = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """Sizes of the graph and the features, the device, and the number of threads."""

    nodes: int
    edges: int
    width: int
    heads: int
    channels: int
    device: str = "cpu"
    threads: int = 1
    seed: int = 0

    @property
    def sums(self) -> str:
        return f"sum of neighbours, width {self.width}"

    @property
    def attention(self) -> str:
        return f"attention, {self.heads} heads x {self.channels}"


@dataclass(frozen=True)
class Edges:
    """Edges by target: int64 row pointer `[n + 1]`, sources and targets `[E]`."""

    pointer: Tensor
    source: Tensor
    target: Tensor


def power_law_edges(case: Case) -> Edges:
    """Return a symmetric graph whose degrees follow a power law (exponent about 2.4)."""
    generator = torch.Generator().manual_seed(case.seed)
    weight = (torch.arange(case.nodes) + 10.0) ** -0.7
    chance = torch.cumsum(weight / weight.sum(), 0)
    order = torch.randperm(case.nodes, generator=generator)
    ends = torch.searchsorted(chance, torch.rand(2, case.edges // 2, generator=generator))
    ends = order[ends.clamp(max=case.nodes - 1)]
    source, target = torch.cat([ends[0], ends[1]]), torch.cat([ends[1], ends[0]])
    key = torch.sort(target * case.nodes + source).values
    target, source = key // case.nodes, key % case.nodes
    pointer = torch.zeros(case.nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(target, minlength=case.nodes), 0, out=pointer[1:])
    return Edges(pointer.to(case.device), source.to(case.device), target.to(case.device))


def there_and_back(name: str, layer: Layer, case: Case, width: int) -> Operations:
    """Return forward alone, and forward with backward, on random features `[n, width]`."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    x_NF, grad_NF = (
        torch.randn(case.nodes, width, generator=generator).to(case.device) for _ in range(2)
    )

    def alone() -> object:
        with torch.no_grad():
            return layer(x_NF)

    def both() -> object:
        return layer(x_NF.detach().requires_grad_()).backward(grad_NF)

    return {f"{name}, forward": alone, f"{name}, forward + backward": both}


def torch_sparse(case: Case, edges: Edges) -> Operations:
    ones = torch.ones(len(edges.source), device=case.device)
    shape = (case.nodes, case.nodes)
    matrix = torch.sparse_csr_tensor(edges.pointer, edges.source, ones, shape)
    return there_and_back(case.sums, lambda x: torch.sparse.mm(matrix, x), case, case.width)


def pyg(case: Case, edges: Edges) -> Operations:
    layers: Any = importlib.import_module("torch_geometric.nn")
    total = case.heads * case.channels
    layer = layers.GATConv(total, case.channels, case.heads, add_self_loops=False)
    layer, index = layer.to(case.device), torch.stack([edges.source, edges.target])
    return there_and_back(case.attention, lambda x: layer(x, index), case, total)


def dgl(case: Case, edges: Edges) -> Operations:
    library: Any = importlib.import_module("dgl")
    layers: Any = importlib.import_module("dgl.nn")
    graph = library.graph((edges.source, edges.target), num_nodes=case.nodes)
    graph = graph.formats(["csc", "csr", "coo"])
    total = case.heads * case.channels
    layer = layers.GATConv(total, case.channels, case.heads, allow_zero_in_degree=True)
    layer = layer.to(case.device)
    return {
        **there_and_back(case.sums, lambda x: library.ops.copy_u_sum(graph, x), case, case.width),
        **there_and_back(case.attention, lambda x: layer(graph, x).flatten(1), case, total),
    }


PEERS: dict[str, Callable[[Case, Edges], Operations]] = {
    "torch.sparse": torch_sparse,
    "PyG GATConv": pyg,
    "DGL": dgl,
}


def operations(name: str, case: Case) -> Operations:
    """Return the operations that the named peer offers.

    Raises:
        ImportError: it isn't installed; a peer that fails to import may raise any other error.
    """
    return PEERS[name](case, power_law_edges(case))


class Worker:
    """A running peer. `operations` is empty, with a warning, if it isn't installed.

    If a peer dies, as from lack of memory, all further samples have no seconds.
    """

    def __init__(self, name: str, case: Case) -> None:
        self.name = name
        self._operations: list[str] | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, name, json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=system.without(),
            text=True,
        )

    @property
    def operations(self) -> list[str]:
        if self._operations is None:
            answer = self._answer() or "its process ended"
            if isinstance(answer, str):
                warn(f"hpcgnn: {self.name} is left out: {answer}")
            self._operations = [] if isinstance(answer, str) else answer
        return self._operations

    def timer(self, operation: str) -> Timer:
        def time_it(repeat: int) -> Sample:
            question = json.dumps([operation, repeat])
            try:
                print(question, file=cast("IO[str]", self.process.stdin), flush=True)
            except BrokenPipeError:
                return Sample([])
            answer = self._answer()
            return Sample([]) if answer is None else Sample(**answer)

        return time_it

    def _answer(self) -> Any:
        line = cast("IO[str]", self.process.stdout).readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def main(name: str, text: str) -> int:
    # Output of a peer must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    case = Case(**json.loads(text))
    torch.set_num_threads(case.threads)
    try:
        timers = {key: local(run) for key, run in operations(name, case).items()}
    except Exception as error:  # any error of a peer that doesn't work is reported
        print(json.dumps(" ".join(str(error).split())[:200]), file=answers, flush=True)
        return 0
    print(json.dumps(list(timers)), file=answers, flush=True)
    for line in sys.stdin:
        operation, repeat = json.loads(line)
        print(json.dumps(asdict(timers[operation](repeat))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
