"""What makes a sum over the edges of a relation a mean: the counts of in-edges by relation."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph import Block, PartitionedGraph


@torch.inference_mode(False)  # what is kept must serve in training too
def mean_factors(graph: PartitionedGraph, *, inward: bool) -> list[Tensor]:
    """Per block and edge, 1 / number of its destination's in-edges of its relation: float32; kept.

    Of `graph.in_edges`, or of `graph.out_edges`, whose columns are the destinations; their owners
    count them. Collective on first use.
    """
    key = "relation mean factors"
    found = graph.cache.get(key)
    if not isinstance(found, tuple):
        found = graph.cache[key] = _count(graph)
    factors: list[Tensor] = found[0 if inward else 1]
    return factors


def _count(graph: PartitionedGraph) -> tuple[list[Tensor], list[Tensor]]:
    relations, device = graph.num_relations, graph.node_ids.device
    edges = graph.in_edges
    keys_E = torch.cat(
        [_local_rows(block) * relations + _relation(block) for block in edges.blocks]
    )
    keys, inverse_E, counts = torch.unique(keys_E, return_inverse=True, return_counts=True)
    share = 1 / counts.float()
    inward = list(share[inverse_E].split([len(block.columns) for block in edges.blocks]))
    del keys_E, inverse_E

    edges = graph.out_edges
    asked, places = [], []
    for block in edges.blocks:
        wanted, place_E = torch.unique(
            block.columns.long() * relations + _relation(block), return_inverse=True
        )
        asked.append(wanted.cpu().numpy())
        places.append(place_E)
    answers = []
    requests = graph.ring.comm.alltoallv(asked, where="relation counts")
    for peer, request in enumerate(requests):
        wanted = torch.from_numpy(request).to(device)
        column, relation = wanted // relations, wanted % relations
        local = column if peer == edges.rank else edges.send_rows[peer].long()[column]
        answers.append(share[torch.searchsorted(keys, local * relations + relation)].cpu().numpy())
    replies = graph.ring.comm.alltoallv(answers, where="relation counts")
    outward = [
        torch.from_numpy(reply).to(device)[place_E]
        for reply, place_E in zip(replies, places, strict=True)
    ]
    return inward, outward


def _local_rows(block: Block) -> Tensor:
    """Local row of each edge: int64."""
    rows = torch.arange(block.num_rows, device=block.device)
    local = rows if block.rows is None else block.rows.long()
    return torch.repeat_interleave(local, block.end - block.begin)


def _relation(block: Block) -> Tensor:
    """Relation of each edge; empty where the block has no edges."""
    return block.columns.new_empty(0) if block.relation is None else block.relation
