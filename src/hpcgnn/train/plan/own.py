"""Memory of a user's model: measured on small random graphs, and scaled up.

The module runs forward and backward on two graphs of the planned degree and widths; the difference
of their peaks of tensor memory gives the bytes per node, edges included. Its messages are unknown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph, of_one_part
from hpcgnn.kernels.block import Block
from hpcgnn.settings import parse_size
from hpcgnn.train.calls import ModelCall
from hpcgnn.train.config import Config
from hpcgnn.train.own_model import ModelFile
from hpcgnn.train.plan.estimate import Memory, Shape, estimate, parameter_copies

_SMALL, _LARGE = 1000, 3000  # nodes
_MOST_DEGREE = 64  # of the small graphs; further edges per node are assumed to need no more


@dataclass(frozen=True)
class Extras:
    """Data that a graph has besides features, labels and relations.

    Attributes:
        weights: whether edges have weights.
        edge_width: features of an edge.
        arrays: named arrays of the nodes, each without rows.
    """

    weights: bool = False
    edge_width: int = 0
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Peak:
    num_bytes: int
    parameters: int
    widest: int  # widest row of any parameter


def measured(
    config: Config, whole: Shape, extras: Extras | None = None
) -> Callable[[Shape], Memory]:
    """Return the function that estimates a shape's memory for the user's module.

    Args:
        extras: what the planned graph has besides; None: nothing.

    Raises:
        InputError: the module doesn't run on such a graph; exceptions raised in it are passed on.
    """
    file = ModelFile.of(config.model)
    comm = Communicator(MPI.COMM_SELF)
    try:
        extras = extras or Extras()
        small, large = (
            _peak(file, config, _graph(whole, extras, n, comm)) for n in (_SMALL, _LARGE)
        )
    finally:
        comm.close()
    per_node = max(0, large.num_bytes - small.num_bytes) / (_LARGE - _SMALL)
    plain = config.changed(model="gcn", model_args="")

    def memory(shape: Shape) -> Memory:
        copies = parameter_copies(shape, config)
        longest = 8 * config.streaming.prefetch * (shape.halo or 0) * 2 * large.widest
        buffers = min(parse_size(config.streaming.halo_buffer), longest) if shape.ranks > 1 else 0
        return replace(
            estimate(shape, plain),
            first_sum=0,
            activations=round(per_node * shape.nodes),
            backward=0,
            parameters=4 * copies * large.parameters,
            halo_buffers=buffers,
        )

    return memory


def _peak(file: ModelFile, config: Config, graph: PartitionedGraph) -> _Peak:
    """Return the peak bytes of tensors in a training step, without the graph's own."""
    model = file.build(graph, config.model.model_args, config.training.seed)
    call = ModelCall(model, graph, config.device.precision, config.device.keep_in)
    graph.set_epoch(0)
    call.training_output()  # computes what is cached
    with _without_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        output = call.training_output()
        if len(output) != graph.num_local_nodes:
            raise InputError(
                "must return one row per node", file=file.path, value=tuple(output.shape)
            )
        output.square().mean().backward()
    held = most = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    sizes = [parameter.shape for parameter in model.parameters()]
    count = sum(size.numel() for size in sizes)
    return _Peak(most, count, max((max(size, default=1) for size in sizes), default=1))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence stderr, where the profiler's library writes when it starts and stops."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _graph(whole: Shape, extras: Extras, nodes: int, comm: Communicator) -> PartitionedGraph:
    """Return a random graph with the degree, widths and kinds of data of the planned one."""
    generator = torch.Generator().manual_seed(nodes)
    edges = round(nodes * min(whole.degree, _MOST_DEGREE))
    target = torch.sort(torch.randint(nodes, (edges,), generator=generator)).values
    pointer = torch.zeros(nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(target, minlength=nodes), 0, out=pointer[1:])
    relation = None
    if whole.relations:
        relation = torch.randint(whole.relations, (edges,), generator=generator).to(torch.int32)
    block = Block(
        peer=0,
        num_columns=nodes,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=torch.randint(nodes, (edges,), generator=generator).to(torch.int32),
        relation=relation,
        weight=torch.ones(edges) if extras.weights else None,
        features=torch.randn(edges, extras.edge_width, generator=generator)
        if extras.edge_width
        else None,
    )
    arrays = {
        name: torch.from_numpy(np.zeros((nodes, *like.shape[1:]), like.dtype))
        for name, like in extras.arrays.items()
    }
    return of_one_part(
        comm,
        block,
        num_classes=whole.outputs,
        features=torch.randn(nodes, whole.features, generator=generator)
        if whole.features
        else None,
        labels=torch.randint(whole.outputs, (nodes,), generator=generator),
        train_mask=torch.ones(nodes, dtype=torch.bool),
        valid_mask=torch.zeros(nodes, dtype=torch.bool),
        test_mask=torch.zeros(nodes, dtype=torch.bool),
        num_relations=whole.relations,
        nodes=arrays,
    )
