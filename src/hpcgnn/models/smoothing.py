"""Post-processing of predictions: label propagation and Correct & Smooth (Huang et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import content_of
from hpcgnn.nn import gcn
from hpcgnn.sar.aggregation import in_degrees, neighbour_sum
from hpcgnn.sar.checks import check_rows


def propagate(
    graph: PartitionedGraph,
    start_NY: Tensor,
    *,
    alpha: float,
    steps: int,
    normalisation: str = "DAD",
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Return `start` after `steps` times `y <- clamp(alpha S y + (1 - alpha) start)`; collective.

    Args:
        normalisation: `DAD` for S = D^-1/2 A D^-1/2, `DA` for D^-1 A, `AD` for A D^-1. A holds the
            graph's edge weights, D sums those of in-edges, and 1 / 0 is taken as 0, as in PyTorch
            Geometric: with `DAD` and `AD`, nothing spreads from a node without in-edges of a
            directed graph.

    Raises:
        InputError: the weights into a node sum to less than 0 or cancel out.
    """
    weighted = content_of(graph).weights
    if weighted:
        gcn.normalisation(graph, None)  # refuses sums without an inverse
    degree_N1 = in_degrees(graph, weighted=weighted)[:, None]
    if normalisation not in ("DAD", "DA", "AD"):
        raise InputError("normalisation must be DAD, DA or AD", value=normalisation)
    check_rows(graph, start_NY, who="label propagation")
    divisor_N1 = torch.where(degree_N1 > 0, degree_N1, 1.0)
    inverse_N1 = divisor_N1.rsqrt() if normalisation == "DAD" else 1 / divisor_N1
    scale_N1 = torch.where(degree_N1 > 0, inverse_N1, 0.0)
    before = None if normalisation == "DA" else scale_N1
    after = None if normalisation == "AD" else scale_N1
    y_NY = start_NY
    for _ in range(steps):
        x_NY = y_NY if before is None else y_NY * before
        x_NY = neighbour_sum(graph, x_NY, weighted=weighted)
        x_NY = x_NY if after is None else x_NY * after
        y_NY = (alpha * x_NY + (1 - alpha) * start_NY).clamp(low, high)
    return y_NY


def known_labels(graph: PartitionedGraph, mask_N: Tensor, num_classes: int) -> Tensor:
    """Return one-hot labels of the nodes in `mask_N` that have one, 0 elsewhere: `[n, Y]`."""
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
    """Return class scores `[n, Y]` from the labels of `mask_N` alone; collective."""
    start_NY = known_labels(graph, mask_N, num_classes)
    return propagate(graph, start_NY, alpha=alpha, steps=steps, normalisation=normalisation)


def correct_and_smooth(
    graph: PartitionedGraph,
    soft_NY: Tensor,
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
    num_classes = soft_NY.shape[1]
    truth_NY = known_labels(graph, mask_N, num_classes)
    known_N1 = truth_NY.sum(1, keepdim=True) > 0
    error_NY = torch.where(known_N1, truth_NY - soft_NY, 0.0)
    total = graph.ring.comm.allreduce(float(error_NY.abs().sum()), where="correct")
    count = graph.ring.comm.allreduce(int(known_N1.sum()), where="correct")
    sigma = total / max(count, 1)
    spread_NY = propagate(
        graph,
        error_NY,
        alpha=correct_alpha,
        steps=steps,
        normalisation=normalisation,
        low=-1.0,
        high=1.0,
    )
    scale_N1 = sigma / spread_NY.abs().sum(1, keepdim=True)
    scale_N1 = torch.where(torch.isinf(scale_N1) | (scale_N1 > 1000), 1.0, scale_N1)
    corrected_NY = soft_NY + scale_N1 * spread_NY
    corrected_NY = torch.where(torch.isnan(corrected_NY), soft_NY, corrected_NY)
    start_NY = torch.where(known_N1, truth_NY, corrected_NY)
    return propagate(graph, start_NY, alpha=smooth_alpha, steps=steps, normalisation=normalisation)
