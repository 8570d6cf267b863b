"""Post-processing of predictions: label propagation and Correct & Smooth (Huang et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.aggregation import in_degrees, neighbour_sum
from hpcgnn.sar.checks import check_rows


def propagate(
    graph: PartitionedGraph,
    start_NC: Tensor,
    *,
    alpha: float,
    steps: int,
    normalisation: str = "DAD",
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Return `start` after `steps` times `y <- clamp(alpha S y + (1 - alpha) start)`; collective.

    Args:
        normalisation: `DAD` for S = D^-1/2 A D^-1/2, `DA` for D^-1 A, `AD` for A D^-1. D counts
            in-edges, and 1 / 0 is taken as 0, as in PyTorch Geometric: with `DAD` and `AD`, nothing
            spreads from a node without in-edges of a directed graph.
    """
    degree_N1 = in_degrees(graph)[:, None]
    if normalisation not in ("DAD", "DA", "AD"):
        raise InputError("normalisation must be DAD, DA or AD", value=normalisation)
    check_rows(graph, start_NC, who="label propagation")
    at_least_N1 = degree_N1.clamp(min=1)
    inverse_N1 = at_least_N1.rsqrt() if normalisation == "DAD" else 1 / at_least_N1
    scale_N1 = torch.where(degree_N1 > 0, inverse_N1, 0.0)
    before = None if normalisation == "DA" else scale_N1
    after = None if normalisation == "AD" else scale_N1
    y_NC = start_NC
    for _ in range(steps):
        x_NC = y_NC if before is None else y_NC * before
        x_NC = neighbour_sum(graph, x_NC, weighted=False)
        x_NC = x_NC if after is None else x_NC * after
        y_NC = (alpha * x_NC + (1 - alpha) * start_NC).clamp(low, high)
    return y_NC


def known_labels(graph: PartitionedGraph, mask_N: Tensor, num_classes: int) -> Tensor:
    """Return one-hot labels of the nodes in `mask_N` that have one, 0 elsewhere: `[n, C]`."""
    if graph.labels is None:
        return torch.zeros(graph.num_local_nodes, num_classes, device=graph.node_ids.device)
    known_N = mask_N & (graph.labels >= 0)
    labels_N = torch.where(known_N, graph.labels, 0)
    return functional.one_hot(labels_N, num_classes).float() * known_N[:, None]


def label_propagation(
    graph: PartitionedGraph,
    mask_N: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.9,
    steps: int = 50,
    normalisation: str = "AD",
) -> Tensor:
    """Return class scores `[n, C]` from the labels of `mask_N` alone; collective."""
    start_NC = known_labels(graph, mask_N, num_classes)
    return propagate(graph, start_NC, alpha=alpha, steps=steps, normalisation=normalisation)


def correct_and_smooth(
    graph: PartitionedGraph,
    soft_NC: Tensor,
    mask_N: Tensor,
    *,
    correct_alpha: float = 0.8,
    smooth_alpha: float = 0.8,
    steps: int = 50,
    normalisation: str = "DAD",
) -> Tensor:
    """Return probabilities corrected by propagated training errors, then smoothed; collective.

    The error is scaled to its mean size on the training nodes ("autoscale"); then training nodes
    take their true label, and the result is propagated.
    """
    num_classes = soft_NC.shape[1]
    truth_NC = known_labels(graph, mask_N, num_classes)
    known_N1 = truth_NC.sum(1, keepdim=True) > 0
    error_NC = torch.where(known_N1, truth_NC - soft_NC, 0.0)
    total = graph.ring.comm.allreduce(float(error_NC.abs().sum()), where="correct")
    count = graph.ring.comm.allreduce(int(known_N1.sum()), where="correct")
    sigma = total / max(count, 1)
    spread_NC = propagate(
        graph,
        error_NC,
        alpha=correct_alpha,
        steps=steps,
        normalisation=normalisation,
        low=-1.0,
        high=1.0,
    )
    scale_N1 = sigma / spread_NC.abs().sum(1, keepdim=True)
    scale_N1 = torch.where(torch.isinf(scale_N1) | (scale_N1 > 1000), 1.0, scale_N1)
    corrected_NC = soft_NC + scale_N1 * spread_NC
    corrected_NC = torch.where(torch.isnan(corrected_NC), soft_NC, corrected_NC)
    start_NC = torch.where(known_N1, truth_NC, corrected_NC)
    return propagate(graph, start_NC, alpha=smooth_alpha, steps=steps, normalisation=normalisation)
