"""Growth of costs with nodes, messages, heads, threads, ranks, and pieces of user-defined messages.

    OMP_WAIT_POLICY=passive mpiexec -n P python jobs/growth.py [NODES]

Each line is one cost, CPU seconds of all ranks together (the least of three), as one thing grows.
In brackets are the numbers that are touched, (edges + local rows + halo rows) x columns of all
ranks, in millions. Then come the exponents of the power laws through the ends: of what grows, and
of the numbers, where these grow. The second is 1 where time is linear in edges and rows x width.
The first is near 0 for what shares out the same work, until parts of it are so small that starting
them counts.
Random graph, no locality, 8 edges into each node.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hpcgnn import nn, run
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar.aggregation import neighbour_sum

DEGREE, WIDTH = 8, 32
Step = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """CPU seconds of all ranks, and numbers that are accessed."""

    seconds: float
    numbers: int


def block(own: np.ndarray, other: np.ndarray, nodes: int, peer: int, here: bool) -> Block:
    """Return edges `other -> own` between local nodes, or from halo rows."""
    columns = other if here else np.unique(other, return_inverse=True)[1]
    order = np.lexsort((columns, own))
    rows, counts = np.unique(own, return_counts=True)
    if here:
        rows, counts = np.arange(nodes), np.bincount(own, minlength=nodes)
    pointer = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    return Block(
        peer,
        nodes if here else len(np.unique(other)),
        None if here else torch.from_numpy(rows.astype(np.int32)),
        pointer[:-1],
        pointer[1:],
        torch.from_numpy(columns[order].astype(np.int32)),
    )


def random_part(comm: Communicator, nodes: int, halo_buffer: int, mode: str) -> PartitionedGraph:
    """Return this rank's part of a symmetric graph; both ranks of a block draw its edges."""
    local = nodes // comm.size
    blocks, send_rows = [], []
    for peer in range(comm.size):
        low, high = sorted((comm.rank, peer))
        count = local * DEGREE // comm.size // (2 if low == high else 1)
        ends = np.random.default_rng((low, high)).integers(0, local, (2, count))
        own, other = ends if comm.rank == low else ends[::-1]
        if peer == comm.rank:
            own, other = np.concatenate([own, other]), np.concatenate([other, own])
        blocks.append(block(own, other, local, peer, peer == comm.rank))
        send = np.unique(own) if peer != comm.rank else own[:0]
        send_rows.append(torch.from_numpy(send.astype(np.int32)))
    edges = EdgeBlocks(comm.rank, blocks, send_rows)
    ids = torch.arange(local) + comm.rank * local
    ring = Ring(comm, halo_buffer=halo_buffer)
    execution = Execution(ring, mode=mode, fewest_rows=False)
    return PartitionedGraph(local * comm.size, nodes * DEGREE, 2, ids, ids, edges, edges, execution)


class Largest(nn.MessagePassing):
    """A message in torch, for a few edges at a time."""

    def __init__(self, piece: int) -> None:
        super().__init__(aggr=["max", "softmax"], piece=piece)

    def message(self, x_src: Tensor, x_dst: Tensor, edge: object) -> tuple[Tensor, Tensor]:
        return x_src, x_dst


def cost_of(graph: PartitionedGraph, width: int, step: Step) -> Cost:
    """Return the least of three costs; a first call for preparation does not count."""
    comm, blocks = graph.ring.comm, graph.in_edges.blocks
    # Rows are local ones, and those that arrive in messages.
    rows = sum(block.num_columns for block in blocks)
    edges = sum(block.num_edges for block in blocks)
    numbers = comm.allreduce((edges + rows) * width, where="numbers")
    step()
    taken = []
    for _ in range(3):
        comm.barrier()
        began = time.process_time()
        step()
        taken.append(comm.allreduce(time.process_time() - began, where="CPU seconds"))
    return Cost(min(taken), int(numbers))


def there_and_back(
    comm: Communicator,
    layer: torch.nn.Module,
    nodes: int,
    buffer: int = 1 << 28,
    mode: str = "sar",
    width: int = WIDTH,
) -> Cost:
    """Run forward and backward of a layer of `width` input and output columns."""
    graph = random_part(comm, nodes, buffer, mode)
    x = torch.randn(graph.num_local_nodes, width, requires_grad=True)
    return cost_of(graph, width, lambda: layer(graph, x).sum().backward())


def sum_forward(comm: Communicator, nodes: int, buffer: int = 1 << 28, width: int = WIDTH) -> Cost:
    graph = random_part(comm, nodes, buffer, "sar")
    x = torch.randn(graph.num_local_nodes, width)
    return cost_of(graph, width, lambda: neighbour_sum(graph, x))


def exponent(values: Sequence[float], sizes: Sequence[float]) -> float:
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def show(comm: Communicator, name: str, sizes: Sequence[int], cost: Callable[[int], Cost]) -> None:
    costs = [cost(size) for size in sizes]
    if comm.rank != 0:
        return
    seconds, numbers = [c.seconds for c in costs], [c.numbers for c in costs]
    shown = ", ".join(
        f"{n:,}: {c.seconds:.3f} [{c.numbers / 1e6:.0f}]" for n, c in zip(sizes, costs, strict=True)
    )
    found = f"{exponent(seconds, sizes):5.2f}"
    if numbers[-1] > numbers[0]:
        found += f", of numbers {exponent(seconds, numbers):5.2f}"
    print(f"{name:38} exponent {found}   ({shown})", flush=True)


def threads_of(cost: Callable[[], Cost]) -> Callable[[int], Cost]:
    def measured(threads: int) -> Cost:
        torch.set_num_threads(threads)
        try:
            return cost()
        finally:
            torch.set_num_threads(1)

    return measured


def over_ranks(comm: Communicator, nodes: int, sizes: Iterable[int]) -> None:
    """Run on the same graph with the first 1, 2, 4, ... ranks."""
    costs = {}
    for size in sizes:
        some = comm.sub(range(size))
        if some is not None:
            costs[size] = there_and_back(some, gat(8), nodes)
            some.close()
        comm.barrier()
    if comm.rank == 0:
        show(comm, "GAT, ranks", list(costs), costs.__getitem__)


def gat(heads: int, width: int = WIDTH) -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.GATConv(width, width // heads, heads=heads)


def main(comm: Communicator) -> None:
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    torch.set_num_threads(1)
    buffers = [1 << 28 >> cut for cut in range(0, 11, 2)]
    of_buffer = {1 << cut: buffer for cut, buffer in zip(range(0, 11, 2), buffers, strict=True)}
    if comm.rank == 0:
        print(f"{nodes:,} nodes, {nodes * DEGREE:,} edges, {comm.size} ranks", flush=True)
    grown = [nodes, 2 * nodes, 4 * nodes]
    show(comm, "sum, nodes", grown, lambda n: sum_forward(comm, n))
    show(comm, "GAT, nodes", grown, lambda n: there_and_back(comm, gat(8), n))
    widths = [32, 64, 128, 256]
    show(comm, "sum, columns", widths, lambda w: sum_forward(comm, nodes, width=w))
    wide = partial(there_and_back, comm, nodes=nodes)
    show(comm, "GAT, columns of 4 heads", widths, lambda w: wide(gat(4, w), width=w))
    heads = [1, 4, 16]
    show(comm, "GAT, heads of 32 columns", heads, lambda h: there_and_back(comm, gat(h), nodes))
    threads = threads_of(lambda: there_and_back(comm, gat(8), nodes))
    show(comm, "GAT, threads", [1, 2, 4, 8], threads)
    if comm.size > 1:
        cuts = list(of_buffer)
        show(comm, "sum, messages", cuts, lambda m: sum_forward(comm, nodes, of_buffer[m]))
        for mode in ("sar", "sa"):
            backward = partial(there_and_back, comm, gat(8), nodes, mode=mode)
            costs = {m: backward(buffer=buffer) for m, buffer in of_buffer.items()}
            show(comm, f"GAT, messages, mode {mode}", cuts, costs.__getitem__)
        over_ranks(comm, nodes, [p for p in (1, 2, 4, 8, 16) if p <= comm.size])
    pieces = [8, 4, 2, 1]
    show(
        comm,
        "max and softmax of messages, pieces",
        [8 // piece for piece in pieces],
        lambda count: there_and_back(comm, Largest(nodes * DEGREE // 8 // count), nodes),
    )


if __name__ == "__main__":
    run(main)
