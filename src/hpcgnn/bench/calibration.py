"""Whole epochs beside the sums of their parts, for `bench machine`.

The rates of a machine are the best of short measurements, which an epoch does not keep up, and no
list of an epoch's parts is complete. So a few models are trained on generated graphs, and the rates
corrected by what their epochs take.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcgnn.bench.graphs import of_edges
from hpcgnn.bench.peers import Case, power_law_edges
from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.plan.estimate import Shape
from hpcgnn.train.plan.machine import HEADS, Machine
from hpcgnn.train.plan.seconds import Seconds, seconds

MODELS = ("gcn", "sage", "gat", "gatv2", "rgcn")
MODELS_ON_RANKS = ("gcn", "sage", "gat", "gatv2")  # relations would have to agree between the ranks
_FEATURES, _CLASSES, _RELATIONS = 100, 20, 8
_EPOCHS = 5  # the first one does not count
_LEAST = 2000  # nodes of a rank
_REMOTE = 0.25  # of the edges lead to other ranks
_READ = 0.5  # of a rank's rows are read by the others, in all
_TURNS = 2  # over all models: a disturbance in one is gone in the next
_RANGE = (0.5, 4.0)  # of factors that can be true

Size = tuple[int, int]  # nodes and edges of the whole graph


@dataclass(frozen=True)
class Epoch:
    """An epoch of a model on a graph: its seconds, and those planned by part."""

    measured: float
    planned: Seconds


@dataclass(frozen=True)
class Factors:
    """What an epoch takes for its gathers, and for all other work, over what rates tell."""

    gathers: float = 1.0
    others: float = 1.0


def calibrate(
    comm: Communicator, machine: Machine, sizes: Sequence[Size], device: torch.device
) -> Factors:
    """Return the factors that fit the measured epochs of several models best. Collective.

    Args:
        machine: the rates measured so far.
        sizes: of the graphs, each of which is divided among the ranks, but not into tiny parts.
    """
    found: dict[tuple[int, str], Epoch] = {}
    for _ in range(_TURNS):
        for number, (nodes, edges) in enumerate(sizes):
            share = max(1 / comm.size, _LEAST / nodes)
            graph = _graph(comm, int(share * nodes), int(share * edges), device)
            for model in MODELS if comm.size == 1 else MODELS_ON_RANKS:
                config = Config.of(
                    model=model,
                    layers=3,
                    hidden=64,
                    heads=HEADS,
                    epochs=_EPOCHS,
                    checkpoint_every=0,
                    prune=False,  # edges from other ranks aren't those that these ranks send to
                )
                planned = seconds(_shape(graph), config, machine)
                epoch = Epoch(_measured(comm, graph, config), planned)
                before = found.get((number, model), epoch)
                found[number, model] = min(epoch, before, key=lambda one: one.measured)
    return fitted(list(found.values()))


def fitted(epochs: Sequence[Epoch]) -> Factors:
    """Return the factors with the least squares of relative errors, within `_RANGE`."""
    rows, wanted = [], []
    for epoch in epochs:
        parts, total = epoch.planned, epoch.measured
        rows.append([parts.gathers / total, (parts.products + parts.rows + parts.steps) / total])
        wanted.append(1 - (parts.messages + parts.all_reduce + parts.waiting) / total)
    found = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    gathers, others = np.clip(found, *_RANGE).tolist()
    return Factors(gathers, others)


def _measured(comm: Communicator, graph: PartitionedGraph, config: Config) -> float:
    """Return the seconds of an epoch, the least of a few, which includes an evaluation."""
    found: list[float] = []

    def note(trainer: object, record: dict[str, Any]) -> None:
        found.append(record["epoch_seconds"])

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = comm.broadcast(folder, where="bench machine")
        configured_trainer(
            graph, config, Path(path) / "run", show="nothing", callbacks=[note]
        ).run()
        comm.barrier("bench machine")
    return min(found[1:])


def _graph(comm: Communicator, nodes: int, edges: int, device: torch.device) -> PartitionedGraph:
    """Return a part of a graph with random features, classes and relations.

    Edges of the part follow a power law; those from other ranks are as many from each of them.
    """
    draw = torch.Generator().manual_seed(comm.rank)
    peers = comm.size - 1
    remote = int(edges * _REMOTE) // peers if peers else 0
    read = max(1, int(nodes * _READ) // peers) if peers else 0
    blocks, sent = [], []
    for peer in range(comm.size):
        local = peer == comm.rank
        number = edges - peers * remote if local else remote
        blocks.append(_block(peer, nodes, nodes if local else read, number).to(device))
        rows = torch.randperm(nodes, generator=draw)[: 0 if local else read]
        sent.append(rows.sort().values.to(device, torch.int32))
    split = torch.randint(3, (nodes,), generator=draw).to(device)
    return replace(
        of_edges(comm, EdgeBlocks(comm.rank, blocks, sent)),
        features=torch.randn(nodes, _FEATURES, generator=draw).to(device),
        labels=torch.randint(_CLASSES, (nodes,), generator=draw).to(device),
        num_classes=_CLASSES,
        num_relations=_RELATIONS,
        train_mask=split == 0,
        valid_mask=split == 1,
        test_mask=split == 2,
    )


def _block(peer: int, rows: int, columns: int, edges: int) -> Block:
    """Return random edges into `rows` rows from `columns` rows, in the order of the rows."""
    found = power_law_edges(Case(rows, edges, 0, HEADS, 0))
    source = found.source * columns // rows  # still ascending within a row
    return Block(
        peer=peer,
        num_columns=columns,
        rows=None,
        begin=found.pointer[:-1],
        end=found.pointer[1:],
        columns=source.to(torch.int32),
        relation=((found.source + found.target) % _RELATIONS).to(torch.int32),  # both ways
    )


def _shape(graph: PartitionedGraph) -> Shape:
    """Return the shape of each part."""
    ranks, halo = graph.comm.size, sum(block.num_columns for block in graph.in_edges.blocks)
    halo -= graph.num_local_nodes
    return Shape(
        ranks=ranks,
        nodes=graph.num_local_nodes,
        edges=graph.num_edges // ranks,
        features=_FEATURES,
        outputs=_CLASSES,
        halo=halo if ranks > 1 else None,
        volume=halo * ranks if ranks > 1 else None,
        relations=_RELATIONS,
        whole_nodes=graph.num_nodes,
        whole_edges=graph.num_edges,
    )
