"""Measurement of the machine for `hpcgnn plan --machine`, where this runs.

Each rate is measured on rank 0 alone while the others wait, and then on all ranks at once.
Everything is measured several times and the best value counts, since other processes only slow it
down. Then a few models are trained, and the rates corrected by what an epoch takes.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.bench import machine_file
from hpcgnn.bench.calibration import Factors, calibrate
from hpcgnn.bench.machine_file import MeasuredRates, Rate, Surroundings
from hpcgnn.bench.peers import Case, power_law_edges
from hpcgnn.bench.steps import seconds_of_step
from hpcgnn.bench.timing import synchronise
from hpcgnn.comm.communicator import Communicator
from hpcgnn.kernels.block import Block
from hpcgnn.system import available_memory, now
from hpcgnn.train.plan.machine import HEADS, machine_of

_WIDTHS = (8, 32, 128, 256, 512)
_ROWS_OF = {"few": 4_000, "some": 30_000, "many": 200_000, "long": 4_000}  # rows gathered from
_DEGREE = {"few": 15, "some": 15, "many": 8, "long": 60}
_MANY_WIDTH = (
    128  # rows wider than this are gathered from fewer, in as many bytes: no cache holds them
)
_PRODUCT_ROWS = 20_000
_ROWS = (100_000, 256)  # that passes go over
_MESSAGES = (64, 4096, 65_536, 1 << 20, 16 << 20)
_LEAST_SECONDS = 0.02  # seconds over which a rate is measured
_TURNS = 2
_GRAPHS = ((60_000, 720_000), (12_000, 1_200_000))  # nodes and edges trained on
_LARGER_ON_GPU = 8  # times, where a graph of these sizes would be done before it has begun
_SWEEPS = 2  # over all rates: a disturbance of a second or two in one sweep is gone in the next

Run = Callable[[], object]
Result = TypeVar("Result")


def measure(comm: Communicator, name: str, device: torch.device) -> str:
    """Return the text of the machine file, the same on every rank. Collective."""
    hosts = comm.allgather(platform.node(), where="bench machine")
    place, measured = _place(comm, hosts, name, device), _measure(comm, hosts, device)
    rates = machine_of(machine_file.text(place, measured, Factors(), Factors()))
    times = _LARGER_ON_GPU if device.type == "cuda" else 1
    sizes = [(nodes * times, edges * times) for nodes, edges in _GRAPHS]
    alone = _alone(comm, lambda part: calibrate(part, rates, sizes, device))
    at_once = alone if comm.size == 1 else calibrate(comm, rates, sizes, device)
    factors = comm.broadcast((alone, at_once), where="bench machine")
    return machine_file.text(place, measured, *factors)


def _place(comm: Communicator, hosts: list[str], name: str, device: torch.device) -> Surroundings:
    per_node = max(hosts.count(host) for host in hosts)
    full_speed = per_node if device.type == "cuda" else max(1, _cores() // torch.get_num_threads())
    memory = _memory(device) // (1 if device.type == "cuda" else per_node)
    source = f"measured by hpcgnn bench machine on {comm.size} ranks of {hosts[0]}, {now()}"
    return Surroundings(
        name=name,
        source=comm.broadcast(source, where="bench machine"),
        device=device,
        per_node=per_node,
        full_speed=full_speed,
        memory=comm.allreduce(memory, "min", where="bench machine"),
    )


def _measure(comm: Communicator, hosts: list[str], device: torch.device) -> MeasuredRates:
    clock = _Clock(comm)
    rates: dict[Hashable, Rate] = {}
    links: list[list[float]] = []
    steps: list[Rate] = []
    for _ in range(_SWEEPS):
        for key, rate in _sweep(clock, device).items():
            before = rates.get(key, rate)
            rates[key] = max(rate[0], before[0]), max(rate[1], before[1])
        links.append([second for place in _messages(comm, hosts) for second in place])
        steps.append(_steps(comm, device))
    seconds = [min(found) for found in zip(*links, strict=True)]
    step = max(s[0] for s in steps), max(s[1] for s in steps)
    return MeasuredRates(
        widths=_WIDTHS,
        rows_of=_ROWS_OF,
        degree=_DEGREE,
        messages=_MESSAGES,
        rates=rates,
        steps=step,
        inside=seconds[: len(_MESSAGES)],
        between=seconds[len(_MESSAGES) :],
    )


def _alone(comm: Communicator, run: Callable[[Communicator], Result]) -> Result | None:
    """Return the result of a run by rank 0, None on other ranks, which wait. Collective."""
    part = comm if comm.size == 1 else comm.sub([0])
    found = None
    if part is not None:
        found = run(part)
        if part is not comm:
            part.close()
    comm.barrier("bench machine")
    return found


def _sweep(clock: _Clock, device: torch.device) -> dict[Hashable, Rate]:
    """Measure every rate once."""
    found: dict[Hashable, Rate] = {("product", w): _product(clock, w, device) for w in _WIDTHS}
    for size, width in itertools.product(_ROWS_OF, _WIDTHS):
        block = _block(size, width, device)
        for kernel, rate in _gathers(clock, block, width, device).items():
            found[kernel, size, width] = rate
    found["rows"] = _rows(clock, device)
    if device.type == "cuda":
        found["host"] = _host(clock, device)
    return found


class _Clock:
    """A clock for rates of rank 0 alone, and of all ranks at once."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    def rates(self, amount: float, run: Run) -> Rate:
        """Return `amount` per second, alone and at once; the same on every rank."""
        self.comm.barrier("bench machine")
        alone = _seconds(run) if self.comm.rank == 0 else 0.0
        alone = self.comm.allreduce(alone, "max", where="bench machine")
        crowd = alone
        if self.comm.size > 1:
            crowd = self.comm.allreduce(_seconds(run), where="bench machine") / self.comm.size
        return amount / alone, amount / crowd


def _seconds(run: Run) -> float:
    """Return the seconds of a run, the least of a few turns, after uncounted ones."""
    run()
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    repeat = max(1, int(_LEAST_SECONDS / max(time.perf_counter() - start, 1e-7)))
    found = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        for _ in range(repeat):
            run()
        synchronise()
        found.append((time.perf_counter() - start) / repeat)
    return min(found)


def _product(clock: _Clock, width: int, device: torch.device) -> Rate:
    """Return the FLOP/s of a layer's three products: forward, of its input, of its weights."""
    x, g = (torch.randn(_PRODUCT_ROWS, width, device=device) for _ in range(2))
    weight, gradient = (torch.randn(width, width, device=device) for _ in range(2))
    out = torch.empty_like(x)  # new memory for each result may take longer than the product

    def run() -> None:
        torch.mm(x, weight.t(), out=out)
        torch.mm(g, weight, out=out)
        torch.mm(g.t(), x, out=gradient)

    return clock.rates(3 * 2.0 * _PRODUCT_ROWS * width * width, run)


def _rows(clock: _Clock, device: torch.device) -> Rate:
    """Return bytes per second, read and written, of passes over rows, in place or not."""
    x = torch.randn(*_ROWS, device=device)

    def run() -> None:
        torch.relu(x).mul_(0.5)

    return clock.rates(4 * x.numel() * 4.0, run)


def _host(clock: _Clock, device: torch.device) -> Rate:
    """Return bytes per second from pinned memory to the device."""
    near = torch.empty(64 << 20, dtype=torch.uint8).pin_memory()
    far = torch.empty_like(near, device=device)
    return clock.rates(float(len(near)), lambda: far.copy_(near, non_blocking=True))


def _steps(comm: Communicator, device: torch.device) -> Rate:
    """Return layer passes per second on tiny graphs: rank 0 alone, all ranks with messages."""
    found = _alone(comm, lambda part: seconds_of_step(part, device))
    alone = comm.allreduce(found or 0.0, "max", where="bench machine")
    if comm.size == 1:
        return 1 / alone, 1 / alone
    return 1 / alone, 1 / seconds_of_step(comm, device)


def _block(size: str, width: int, device: torch.device) -> Block:
    """Return a block of a power-law graph."""
    nodes = _ROWS_OF[size]
    if size in ("some", "many"):
        nodes = min(nodes, nodes * _MANY_WIDTH // width)
    case = Case(nodes, nodes * _DEGREE[size], 0, HEADS, 0, device.type)
    found = power_law_edges(case)
    return Block(
        peer=0,
        num_columns=nodes,
        rows=None,
        begin=found.pointer[:-1],
        end=found.pointer[1:],
        columns=found.source.to(torch.int32),
    )


def _gathers(clock: _Clock, block: Block, width: int, device: torch.device) -> dict[str, Rate]:
    amount = float(block.columns.shape[0]) * width
    runs = _runs(block, width, width // HEADS, device)
    return {name: clock.rates(amount, run) for name, run in runs.items()}


def _runs(block: Block, width: int, channels: int, device: torch.device) -> dict[str, Run]:
    """Return a call of every kernel on the block, see `plan.machine.KERNELS`."""
    nodes = block.num_rows

    def rows(columns: int) -> Tensor:
        return torch.randn(nodes, columns, device=device)

    x, g, out = rows(width), rows(width), rows(width)
    s, t, lse, d = (rows(HEADS) for _ in range(4))
    sources, scoring = kernels.Sources(x, s), kernels.Scoring(slope=0.2)
    destinations = kernels.Destinations(g, t, lse, d)
    softmax = kernels.RunningSoftmax.zeros(nodes, HEADS, width, dtype=torch.float32, device=device)
    grads = kernels.GATGradients(rows(width), torch.zeros_like(s), torch.zeros_like(t))
    att = torch.randn(HEADS, channels, device=device)
    both, result = kernels.Projections(x, g, att), kernels.ResultGradient(g, lse, d)
    wide = kernels.GATv2Gradients(
        rows(width), rows(width), torch.zeros_like(att, dtype=torch.float64)
    )
    return {
        "sum": lambda: kernels.spmm(block, x, out),
        "gat_forward": lambda: kernels.gat_forward(block, sources, t, softmax, scoring),
        "gat_backward": lambda: kernels.gat_backward(block, destinations, sources, grads, scoring),
        "gatv2_forward": lambda: kernels.gatv2_forward(block, both, softmax, scoring),
        "gatv2_backward": lambda: kernels.gatv2_backward(block, both, result, wide, scoring),
    }


def _messages(comm: Communicator, hosts: list[str]) -> tuple[list[float], list[float]]:
    """Return the seconds of messages by their length, inside a node and between nodes.

    All ranks exchange with a neighbour at once, as in the ring. With a single rank, a copy is
    measured in place of a message; with a single node, the values between nodes are those inside.
    """
    if comm.size == 1:
        seconds = [_copy_seconds(size) for size in _MESSAGES]
        return seconds, seconds
    by_node = sorted(range(comm.size), key=lambda rank: (hosts[rank], rank))
    first = {host: hosts.index(host) for host in hosts}
    apart = sorted(range(comm.size), key=lambda rank: by_node.index(rank) - first[hosts[rank]])
    found = []
    for order in (by_node, apart if len(first) > 1 else by_node):
        place = order.index(comm.rank)
        to, source = order[(place + 1) % comm.size], order[place - 1]
        found.append([_exchange_seconds(comm, to, source, size) for size in _MESSAGES])
    return found[0], found[1]


def _exchange_seconds(comm: Communicator, to: int, source: int, size: int) -> float:
    sent, received = np.ones(size, np.uint8), np.empty(size, np.uint8)
    repeat = max(3, min(200, (8 << 20) // size))

    def run() -> None:
        requests = [comm.irecv(received, source, 7), comm.isend(sent, to, 7)]
        comm.wait_all(requests, "bench machine")

    found = []
    for _ in range(_TURNS):
        comm.barrier("bench machine")
        start = time.perf_counter()
        for _ in range(repeat):
            run()
        found.append((time.perf_counter() - start) / repeat)
    return float(comm.allreduce(min(found), "max", where="bench machine"))


def _copy_seconds(size: int) -> float:
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return _seconds(lambda: np.copyto(target, source))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory() or 1 << 30
