"""Sums of nodes with very many edges, in very many parts, compared with double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcgnn import kernels, nn
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.nn.linear import add_product
from hpcgnn.sar import hubs, message_pass, pairs
from hpcgnn.sar.aggregation import neighbour_max, neighbour_sum
from hpcgnn.sar.hubs import Returned, RowSums, SoftmaxSums, Totals
from hpcgnn.sar.products import product_of_rows
from tests.graphs import collect, distribute, local, random_graph

PARTS, LIMIT = 4000, 1e-6  # where plain float32 has errors of 1e-4 to 1e-3
HUB, ORDINARY = 1, 2
TIMES = torch.tensor([3, PARTS, hubs.MANY])


def off(found: Tensor, expected: float) -> float:
    return float((found.double() / expected - 1).abs().max())


def test_rows_stay_exact_over_very_many_parts():
    sums, plain = torch.zeros(3, 2), torch.zeros(3, 2)
    rows = RowSums(sums)
    rows.begin(hubs.often(TIMES))
    for _ in range(PARTS):
        for matrix in (sums, plain):
            matrix += 0.1
        rows.added()
    rows.end()
    exact = PARTS * float(torch.tensor(0.1))
    assert off(sums[HUB], exact) < LIMIT < 1e-5 < off(plain[HUB], exact)
    assert torch.equal(sums[ORDINARY], plain[ORDINARY])


def test_softmax_stays_exact_over_very_many_parts():
    """Each part is a softmax over 10 edges, whose scores rise and fall."""
    softmax = kernels.RunningSoftmax.zeros(3, 2, 4, dtype=torch.float32, device=torch.device("cpu"))
    sums = SoftmaxSums(softmax)
    sums.begin(hubs.often(TIMES))
    columns = torch.arange(10, dtype=torch.int32)
    ends = torch.tensor([10])
    block = kernels.Block(0, 10, torch.tensor([HUB], dtype=torch.int32), ends - 10, ends, columns)
    z, expected = torch.full((10, 4), 0.1), torch.zeros(2, dtype=torch.float64)
    for part in range(PARTS // 4):
        s = torch.full((10, 2), 0.3 * (part % 3))
        expected += 10 * s[0].double().exp()
        scoring = kernels.Scoring(slope=0.2)
        kernels.gat_forward(block, kernels.Sources(z, s), torch.zeros(3, 2), softmax, scoring)
        sums.added()
    sums.end()
    found = softmax.row_sum[HUB].double() * softmax.row_max[HUB].double().exp()
    torch.testing.assert_close(found, expected, rtol=LIMIT, atol=0)
    assert off(softmax.out[HUB] / softmax.row_sum[HUB, :1], float(torch.tensor(0.1))) < LIMIT
    assert softmax.row_max[0].tolist() == [-torch.inf] * 2


def test_rows_of_very_many_peers_stay_exact():
    rows, none = torch.tensor([HUB], dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    edges = EdgeBlocks(0, [None] * PARTS, [none, *[rows] * (PARTS - 1)])  # type: ignore[list-item]
    returned = Returned(edges, torch.zeros(3, 2))
    for _ in range(PARTS - 1):
        returned.accept(rows, torch.full((1, 2), 0.1))
    returned.end()
    assert off(returned.matrices[0][HUB], (PARTS - 1) * float(torch.tensor(0.1))) < LIMIT


def test_totals_of_very_many_pieces_stay_exact():
    for count in (hubs.MANY - 1, hubs.MANY, PARTS):
        totals, plain = Totals([torch.empty(2, 3), torch.empty(1)]), torch.zeros(2, 3)
        for _ in range(count):
            totals.add([torch.full((2, 3), 0.1), None])
            plain += 0.1
        found, untouched = totals.result()
        assert untouched.item() == 0
        assert off(found, count * float(torch.tensor(0.1))) < 1e-5
        assert count > hubs.MANY or torch.equal(found, plain)


@pytest.mark.parametrize("columns", [(1, 1), (3, 4), (1, 60), (10, 10), (40, 60)])
def test_products_over_very_many_rows_stay_exact(columns):
    """Where one call of the library has errors of 4e-5 to 1e-2."""
    a, b = (torch.full((1_000_003, width), 0.3) for width in columns)
    exact = len(a) * float(a[0, 0].double() * b[0, 0])
    assert off(product_of_rows(a, b), exact) < 5e-6
    few = 30_001
    assert off(product_of_rows(a[:few], b[:few]), exact / len(a) * few) < 5e-6


ROWS = {
    "linear": lambda: nn.Linear(16, 2),
    "wide linear": lambda: nn.Linear(64, 40),
    "layer norm": lambda: nn.LayerNorm(16),
    "sage": lambda: nn.SAGEConv(16, 2),
    "sage max": lambda: nn.SAGEConv(16, 2, aggr="max"),
    "wide sage": lambda: nn.SAGEConv(16, 20),
    "gcn": lambda: nn.GCNConv(16, 2),
    "wide gcn": lambda: nn.GCNConv(16, 20),
    "gat": lambda: nn.GATConv(16, 2, residual=True),
    "gatv2": lambda: nn.GATv2Conv(16, 2),
    "sgc": lambda: nn.SGConv(16, 2, 2),
    "dagnn": lambda: nn.AdaptiveDepth(16, 2),
    "pna": lambda: nn.PNAConv(16, 2, ["mean", "max"], ["identity", "linear"], torch.ones(9)),
    "gen": lambda: nn.GENConv(16, 2, norm="layer"),
    "batch": lambda: nn.BatchNorm(16),
    "graph norm": lambda: nn.GraphNorm(16),
    "gin": lambda: nn.GINConv(torch.nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))),
    "rgcn": lambda: nn.RGCNConv(16, 2, 1),
    "rgat": lambda: nn.RGATConv(16, 2, 1, mod="scaled"),
    "transformer": lambda: nn.TransformerConv(16, 2),
}


@pytest.mark.parametrize("name", ROWS)
def test_weights_of_very_many_equal_rows_stay_exact(comm, name):
    """As in double precision, where float32 row by row has errors of 1e-4 and more."""
    torch.manual_seed(1)
    graph = distribute(random_graph(30_000, 30_000, width=1, num_relations=1), comm)
    layer = ROWS[name]()
    x = torch.linspace(0.2, 0.4, 64 if name == "wide linear" else 16).repeat(30_000, 1)

    def gradients(layer: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = layer(x) if name.endswith("linear") else layer(graph, x)
        (y * torch.linspace(0.2, 0.3, y.shape[1])).sum().backward()
        return {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}

    exact = gradients(copy.deepcopy(layer).double(), x.double())
    largest = max(float(grad.abs().max()) for grad in exact.values())
    for parameter, grad in gradients(layer, x).items():
        scale = float(exact[parameter].abs().max())
        if scale > 1e-3 * largest:  # otherwise it cancels
            assert float((grad - exact[parameter]).abs().max()) < 1e-5 * scale, parameter


def added(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    start_NG = layer.bias.expand(len(x), -1).clone()
    return add_product(start_NG, x, layer.weight)


def test_dense_layers_of_many_rows_can_be_differentiated_twice():
    for ours, torchs in ((nn.Linear(4, 3), torch.nn.Linear(4, 3)), (nn.LayerNorm(4),) * 2):
        torchs.load_state_dict(ours.state_dict())

        def second(layer: torch.nn.Module, run: Callable[[Tensor], Tensor]) -> Tensor:
            x = torch.rand(400, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
            wanted = [x, *layer.parameters()]
            parts = torch.autograd.grad(run(x).square().sum(), wanted, create_graph=True)
            sum(part.square().sum() for part in parts).backward()
            return x.grad

        if ours is torchs:
            found = second(ours, partial(ours, None))
            expected = second(ours, super(nn.LayerNorm, ours).forward)
        else:
            found, expected = second(ours, ours), second(torchs, torchs)
            torch.testing.assert_close(second(torchs, partial(added, torchs)), expected)
        torch.testing.assert_close(found, expected)


class Messages(nn.MessagePassing):
    def __init__(self) -> None:
        super().__init__("sum", piece=16)
        self.weight = torch.nn.Parameter(torch.rand(32))

    def message(self, x_src: Tensor, x_dst: Tensor, edge: object) -> Tensor:
        return (x_src * self.weight + x_dst).tanh()


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        return self.function(graph, x)


def products_of_pairs(graph: PartitionedGraph, x: Tensor) -> Tensor:
    """Return products of pairs of a few nodes, each with a few others."""
    number = np.arange(40) * graph.comm.size + graph.comm.rank
    found = pairs.NodePairs(number % 7, number % 5, number)
    return x + pairs.pair_values(graph, x, found, lambda a, b: a * b, piece=4).sum(0)


LAYERS = {
    "sum": lambda: Function(neighbour_sum),
    "max": lambda: Function(neighbour_max),
    "gat": lambda: nn.GATConv(32, 8, heads=4, edge_dim=2),
    "gatv2": lambda: nn.GATv2Conv(32, 8, heads=4, edge_dim=2),
    "rgcn": lambda: nn.RGCNConv(32, 32, 2),
    "messages": Messages,
    "pairs": lambda: Function(products_of_pairs),
}
SEVERAL_ON_ONE_RANK = ("messages", "pairs")  # parts to a row


def results(graph: PartitionedGraph, layer: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return output and gradients of the input and of the layer's parameters, over all ranks."""
    x = local(graph, x).requires_grad_()
    layer.zero_grad()
    y = layer(graph, x)
    (y * torch.arange(y.shape[1])).sum().backward()
    found = {"output": collect(graph, y.detach()), "input": collect(graph, x.grad)}
    for name, parameter in layer.named_parameters():
        found[name] = torch.as_tensor(graph.comm.allreduce(parameter.grad.numpy(), where=name))
    return found


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sar", "sa"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_handle_hubs_without_changing_other_sums(comm, monkeypatch, name, mode):
    """With thresholds so low that all nodes are hubs, sums stay the same."""
    torch.manual_seed(1)
    whole = random_graph(60, 1500, width=32, num_relations=2, edge_width=2)
    layer, x, settled = LAYERS[name](), torch.from_numpy(whole.features), []

    def run() -> dict[str, Tensor]:
        graph = distribute(whole, comm, halo_buffer=4096, mode=mode)
        graph.execution.fewest_rows = False
        return results(graph, layer, x)

    expected = run()
    for module in (hubs, message_pass, pairs):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(hubs, "SETTLED", 1)
    end = RowSums.end
    monkeypatch.setattr(
        RowSums, "end", lambda self: (settled.append(self.rows is not None), end(self))
    )
    found = run()
    for what, value in expected.items():
        torch.testing.assert_close(found[what], value, rtol=1e-5, atol=2e-4)
    assert comm.allreduce(sum(settled)) or (comm.size == 1 and name not in SEVERAL_ON_ONE_RANK)
