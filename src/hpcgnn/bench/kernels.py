"""Neighbour sums and fused attention beside torch, PyTorch Geometric and DGL if installed."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch

from hpcgnn.bench import card
from hpcgnn.bench.graphs import of_edges
from hpcgnn.bench.peers import (
    PEERS,
    Case,
    Edges,
    Operations,
    Worker,
    power_law_edges,
    there_and_back,
)
from hpcgnn.bench.timing import TURNS, Row, compare, copy_bandwidth, kernel_rows, local
from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.nn import GATConv
from hpcgnn.sar.aggregation import neighbour_sum

OURS = "hpcgnn"


@dataclass(frozen=True)
class KernelReport:
    """The result of `bench kernels`."""

    case: Case
    repeat: int
    rows: list[Row]
    card: str | None = None  # on a GPU

    def lines(self) -> list[str]:
        case, turns = self.case, TURNS if self.case.device == "cpu" else 1
        return [
            f"{case.nodes:,} nodes, {case.edges:,} edges, {case.threads} thread(s), {case.device}, "
            f"medians of {turns} x {self.repeat}",
            *([self.card] if self.card else []),
            *map(_line, self.rows),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "what": "kernels",
            "case": dataclasses.asdict(self.case),
            "card": self.card,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def _line(row: Row) -> str:
    text = f"{row.operation:48s} {row.implementation:16s}"
    if row.seconds is None:
        return f"{text} out of memory"
    text += f" {1e3 * row.seconds:9.1f} ms"
    if row.share is not None and row.num_bytes is not None:
        rate = row.num_bytes / row.seconds / 1e9
        text += f" {rate:9.1f} GB/s, {100 * row.share:.0f} % of a copy"
    elif row.ratio is not None:
        text += f" {row.ratio:7.2f} x"
    if row.peak_bytes is not None:
        text += f" {row.peak_bytes / 1e9:8.2f} GB"
    return text


def run(case: Case, comm: Communicator, repeat: int, *, with_peers: bool = True) -> KernelReport:
    """Time all operations of all implementations, on one rank; each peer has its own process."""
    device = torch.empty(0, device=case.device).device
    with ExitStack() as stack:
        names = PEERS if with_peers else ()
        workers = {name: stack.enter_context(closing(Worker(name, case))) for name in names}
        graph = one_part(power_law_edges(case), comm)
        rows = []
        for operation, ours in (_sums(case, graph) | _attention(case, graph)).items():
            timers = {OURS: local(ours)}
            timers |= {
                name: worker.timer(operation)
                for name, worker in workers.items()
                if operation in worker.operations
            }
            in_turns = case.device == "cpu"
            rows += compare(operation, timers, repeat, OURS, in_turns=in_turns)
    copied = copy_bandwidth(device, repeat)
    rows = [with_share(row, moved_bytes(case), copied) for row in rows]
    block, sizes = graph.in_edges.blocks[0], (case.width, case.heads, case.channels)
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        rows += kernel_rows(block, *sizes, dtype, repeat, copied)
    name = card.describe(device, copied) if device.type == "cuda" else None
    return KernelReport(case, repeat, rows, name)


def moved_bytes(case: Case) -> dict[str, int]:
    """Return the bytes that each of our layers must move, by operation, in float32.

    Every gathered row is read once per edge, each array of `[n, ...]` once where it is needed: for
    attention the input, z, the result, and in backward the gradients of all three, z again, and the
    input again for the gradient of the weights.
    """
    number, total, heads = 4, case.heads * case.channels, case.heads
    sums = number * (case.edges * (case.width + 1) + 2 * case.nodes * case.width)
    forward = number * (case.edges * (total + heads + 1) + case.nodes * 4 * total)
    backward = number * (case.edges * (total + 4 * heads + 1) + case.nodes * 8 * total)
    return {
        f"{case.sums}, forward": sums,
        f"{case.sums}, forward + backward": 2 * sums,
        f"{case.attention}, forward": forward,
        f"{case.attention}, forward + backward": forward + backward,
    }


def with_share(row: Row, moved: dict[str, int], copied: float) -> Row:
    """Return our row with its rate over these bytes as a share of a copy's; others unchanged."""
    num_bytes = moved.get(row.operation)
    if row.implementation != OURS or row.seconds is None or num_bytes is None:
        return row
    return dataclasses.replace(row, num_bytes=num_bytes, share=num_bytes / row.seconds / copied)


def one_part(edges: Edges, comm: Communicator) -> PartitionedGraph:
    """Return the whole graph as one part, on this rank."""
    nodes = len(edges.pointer) - 1
    block = Block(
        peer=0,
        num_columns=nodes,
        rows=None,
        begin=edges.pointer[:-1],
        end=edges.pointer[1:],
        columns=edges.source.to(torch.int32),
    )
    nothing = torch.empty(0, dtype=torch.int32, device=edges.pointer.device)
    return of_edges(comm, EdgeBlocks(0, [block], [nothing]))


def _sums(case: Case, graph: PartitionedGraph) -> Operations:
    return there_and_back(case.sums, lambda x: neighbour_sum(graph, x), case, case.width)


def _attention(case: Case, graph: PartitionedGraph) -> Operations:
    total = case.heads * case.channels
    layer = GATConv(total, case.channels, case.heads, add_self_loops=False).to(case.device)
    return there_and_back(case.attention, lambda x: layer(graph, x), case, total)
