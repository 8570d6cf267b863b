"""Averaged attention heads, computed one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hpcgnn import nn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.gat_heads import one_at_a_time
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi
HEADS, CHANNELS, WIDTH = 3, 7, 5


def layer(edge_dim: int | None = None) -> nn.GATConv:
    torch.manual_seed(1)
    return nn.GATConv(WIDTH, CHANNELS, HEADS, concat=False, dropout=0.4, edge_dim=edge_dim, layer=2)


def results(graph: PartitionedGraph, conv: nn.GATConv, mode: str) -> list[torch.Tensor]:
    """Return output and gradients, with those of weights summed over all ranks."""
    graph.execution.mode = mode
    conv.zero_grad()
    x = graph.features.clone().requires_grad_()
    out = conv(graph, x)
    (out * torch.linspace(-1, 2, CHANNELS)).square().sum().backward()
    summed = [graph.ring.comm.allreduce(p.grad) for p in conv.parameters()]
    return [out.detach(), x.grad, *summed]


@pytest.mark.parametrize("edge_width", [0, 2])
def test_one_head_at_a_time_gives_the_same_results(comm, edge_width):
    """Equal to mode `sa` with the same dropped edges, and the same bits in every run."""
    whole = random_graph(120, 500, width=WIDTH, edge_width=edge_width)
    graph, conv = distribute(whole, comm, halo_buffer=4096), layer(edge_width or None)
    graph.set_epoch(3)
    found, again = results(graph, conv, "sar"), results(graph, conv, "sar")
    assert all(map(torch.equal, found, again))
    for ours, expected in zip(found, results(graph, conv, "sa"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_one_head_at_a_time_in_bfloat16(comm):
    graph, conv = distribute(random_graph(120, 500, width=WIDTH), comm), layer()
    graph.set_epoch(3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (results(graph, conv, mode) for mode in ("sar", "sa"))
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) < 2e-2 * float(theirs.norm()) + 1e-6


class Widest(TorchDispatchMode):
    """Records the largest number of values per local node that an operation returned."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == self.rows > 0:
                self.columns = max(self.columns, value.numel() // self.rows)
        return out


def test_no_array_is_as_wide_as_all_heads(comm):
    graph = distribute(random_graph(400, 900, width=WIDTH), comm)
    conv = layer()
    for mode, wide in (("sar", False), ("sa", True)):
        widest = Widest(graph.num_local_nodes)
        with widest:
            results(graph, conv, mode)
        if graph.num_local_nodes:
            assert (widest.columns >= HEADS * CHANNELS) == wide


def test_heads_are_separated_only_where_it_saves_memory():
    shape = {"heads": 4, "channels": 172, "inputs": 512}
    assert one_at_a_time("sar", **shape)
    assert not one_at_a_time("sa", **shape)
    assert not one_at_a_time("sar", **shape | {"channels": 128})
    assert not one_at_a_time("sar", **shape | {"heads": 1, "channels": 1000})
