"""Checks of node features, edge features and edge rows that a user passes to a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.features import HostRows, SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import HALF_PRECISION


def check_rows(
    graph: PartitionedGraph,
    x: object,
    *,
    who: str,
    width: int = -1,
    constant: bool = False,
    like: Tensor | None = None,
) -> None:
    """Raise InputError unless `x` is `[n, width]` in floating point, on the graph's device.

    Args:
        who: prefix of the error message.
        width: -1 for any.
        constant: also accept `SparseRows` and `HostRows`.
        like: weights whose precision `x` must have.
    """
    if not isinstance(graph, PartitionedGraph):
        raise InputError(
            f"{who}: a layer is called as layer(graph, x), with a PartitionedGraph first",
            value=type(graph).__name__,
        )
    shape = check_features(x, who=who, width=width, constant=constant, like=like)
    if shape[0] != graph.num_local_nodes:
        raise InputError(
            f"{who}: give a row for each of this part's {graph.num_local_nodes} nodes",
            value=shape,
            rank=graph.ring.comm.rank,
        )
    device = graph.node_ids.device
    if isinstance(x, Tensor) and x.device != device:
        raise InputError(f"{who}: must be on {device}, like the graph", value=str(x.device))
    changed = graph.changed()
    if changed:
        raise InputError(
            f"{who}: graph.{changed} was changed in place, which what was computed from it does "
            "not follow: change the graph before `convert`, or make another by dataclasses.replace",
            rank=graph.ring.comm.rank,
        )


def check_features(
    x: object,
    *,
    who: str,
    width: int = -1,
    constant: bool = False,
    like: Tensor | None = None,
) -> tuple[int, int]:
    """Return the shape of `x`; raise InputError unless it is a floating-point matrix of `width`."""
    if isinstance(x, SparseRows | HostRows) and not constant:
        raise InputError(f"{who}: needs dense features on the device", value=type(x).__name__)
    if not isinstance(x, Tensor | SparseRows | HostRows):
        raise InputError(
            f"{who}: must be a tensor, or a graph's features; torch.from_numpy(x) converts an "
            "array",
            value=type(x).__name__,
        )
    shape = tuple(x.shape)
    if isinstance(x, SparseRows):
        x.check_unchanged()
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise InputError(f"{who}: must be a dense tensor", value=str(x.layout))
        if not x.is_floating_point():
            raise InputError(f"{who}: must be floating point; call .float()", value=str(x.dtype))
        if like is not None and {x.dtype, like.dtype} == {torch.float32, torch.float64}:
            names = f"{x.dtype}, the weights are {like.dtype}".replace("torch.", "")
            raise InputError(f"{who}: is {names}; call x.to(weight.dtype)")
    if like is not None and like.dtype in HALF_PRECISION and like.device.type == "cpu":
        name = str(like.dtype).removeprefix("torch.")
        raise InputError(
            f"{who}: has weights in {name}, which layers don't support on a CPU; call "
            "model.float(), and torch.autocast with bfloat16, or --precision bf16, for less memory"
        )
    if len(shape) != 2 or width not in (-1, shape[1]):
        wanted = "any number of" if width == -1 else str(width)
        raise InputError(f"{who}: must be a matrix of {wanted} columns", value=shape)
    return shape[0], shape[1]


def check_edges(graph: PartitionedGraph, width: int | None, *, who: str) -> None:
    """Raise InputError unless the edges have features of this width; None checks nothing."""
    if width is None:
        return
    for block in graph.in_edges.blocks:
        if block.features is None and not block.columns.shape[0]:
            continue
        if block.features is None or block.features.shape[1] != width:
            raise InputError(
                f"{who}: edge_dim is {width}, so the graph needs edge features of that width",
                value=0 if block.features is None else int(block.features.shape[1]),
            )


def check_edge_rows(graph: PartitionedGraph, rows: object, *, who: str) -> None:
    """Raise InputError unless `rows` has a row for each edge into this part's nodes."""
    edges = sum(block.columns.shape[0] for block in graph.in_edges.blocks)
    shape = check_features(rows, who=who)
    if shape[0] != edges:
        raise InputError(
            f"{who}: give a row for each of this part's {edges} edges",
            value=shape,
            rank=graph.ring.comm.rank,
        )
