"""Link prediction: true pairs of nodes must score higher than randomly drawn pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.unfinished import in_step
from hpcgnn.errors import InputError
from hpcgnn.graph.draws import below, key_of, unit
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import EdgeEnds, FindPlaces, Places
from hpcgnn.graph.subgraph import without_edges
from hpcgnn.kernels.seal import Seal
from hpcgnn.sar.pairs import NodePairs, pair_values
from hpcgnn.sorting import sorted_unique
from hpcgnn.tasks.metrics import hits_at, mean_reciprocal_rank, roc_auc
from hpcgnn.tasks.pairs import DotProduct, PairRows, name_of, numbered
from hpcgnn.tasks.task import SPLITS, TaskDefaults, check_count, checked

_TRIES = 16  # draws per false pair; a node with edges to nearly all others may get a true one
LINK_METRICS = ("mrr", "hits", "auc")
_AT_A_TIME = 1 << 18  # number of false pairs ranked at a time
STORED_LATER = ("ranked_against", "seed")  # what checkpoints of earlier releases lack of the task


@dataclass(frozen=True)
class KnownEdges:
    """All edges of a graph, `source place, target place`, each kept by the target's rank."""

    places: Places
    keys: np.ndarray  # keys of the edges into local nodes, ascending

    @staticmethod
    def of(graph: PartitionedGraph) -> KnownEdges:
        """Return all edges, including those without messages; collective."""
        places = graph.derived(FindPlaces())
        source, target = graph.derived(EdgeEnds())
        keys = (target - places.first) * graph.num_nodes + source
        return KnownEdges(places, sorted_unique(keys))

    def contain(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return bool: whether there is an edge between each pair of places; collective."""
        comm, places = self.places.comm, self.places
        owner = places.owner(target)
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(1, comm.size))
        ends = np.stack([source, target], axis=1)[order]
        answers = []
        for asked in comm.alltoallv(np.split(ends, cuts), where="look for edges"):
            keys = (asked[:, 1] - places.first) * places.first_P1[-1] + asked[:, 0]
            at = np.searchsorted(self.keys, keys)
            answers.append(np.append(self.keys, -1)[at] == keys)
        found = np.empty(len(order), bool)
        found[order] = np.concatenate(comm.alltoallv(answers, where="look for edges"))
        return found


def false_targets(
    edges: KnownEdges, pairs: NodePairs, count: int, *, seed: int, epoch: int
) -> np.ndarray:
    """Return the places of `count` nodes for each pair, int64 `[m, count]`; collective.

    None of them is the source or has an edge from it, except where many draws found no other.
    """
    comm, places = edges.places.comm, edges.places
    num_nodes = int(places.first_P1[-1])
    number = np.repeat(pairs.number, count)
    which = np.tile(np.arange(count), len(pairs))
    source = np.repeat(pairs.source, count)
    found = np.zeros(len(number), np.int64)
    left = np.arange(len(number))
    for attempt in range(_TRIES):
        drawn = below(key_of(seed, epoch, attempt), num_nodes, number[left], which[left])
        found[left] = places.of_ids(drawn)
        wrong = edges.contain(source[left], found[left]) | (source[left] == found[left])
        left = left[wrong]
        if not _any(comm, len(left)):
            break
    return found.reshape(len(pairs), count)


def share_of(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a bool mask that samples items by their numbers, the same on any number of ranks."""
    return unit(key_of(seed, 0, _TRIES), numbers) < share


def _any(comm: Communicator, count: int) -> bool:
    return bool(comm.allreduce(count, "max", where="false pairs"))


@dataclass(frozen=True)
class Supervision:
    """The true pairs of each split, and all edges of the graph."""

    pairs: dict[str, NodePairs]
    edges: KnownEdges


class LinkPrediction(TaskDefaults):
    """The task of learning which pairs of nodes have an edge.

    `graph.edge_split` says which edges are true pairs of train, valid and test. `prepare` removes
    those of valid and test from the graph, so that no message reveals them to the model; the
    trainer calls it, and a user's own training loop must do so too.

    The loss is the mean binary cross entropy of the true pairs of train and of false pairs that
    are drawn anew each epoch. Metrics rank each true pair among false pairs that are always the
    same: MRR among its own, hits@k and ROC AUC among all. Metrics of `train` use a sample of its
    pairs.

    Args:
        width: the width of the model's output row of each node.
        module: computes a score from two rows; None: their dot product.
        metric: `mrr`, `hits` or `auc`.
        negatives: the number of false pairs per true pair and epoch.
        ranked_against: the number of false pairs among which each true pair is ranked.
        hits_at: k of hits@k.
        seed: the seed of all draws.
    """

    larger_is_better = True
    num_outputs: int
    has_valid_loss = False  # `loss` always uses the training pairs

    def __init__(
        self,
        width: int,
        module: torch.nn.Module | None = None,
        *,
        metric: str = "mrr",
        negatives: int = 1,
        ranked_against: int = 100,
        hits_at: int = 10,
        seed: int = 0,
    ) -> None:
        given = {"width": width, "negatives": negatives, "ranked_against": ranked_against}
        for name, value in (given | {"hits_at": hits_at}).items():
            check_count(self, name, value)
        check_count(self, "seed", seed, least=0)
        checked(metric, LINK_METRICS, "links")
        self.num_outputs = width
        self.module: torch.nn.Module = DotProduct() if module is None else module
        self.metric = f"hits@{hits_at}" if metric == "hits" else metric
        self.negatives, self.ranked_against = negatives, ranked_against
        self.hits_at, self.seed = hits_at, seed
        self._supervision: Supervision | None = None
        self._nodes: Tensor | None = None
        self._splits = Seal({})

    def prepare(self, graph: PartitionedGraph) -> PartitionedGraph:
        """Return the graph without the edges of valid and test, which are kept here; collective.

        Raises:
            InputError: the two directions of an undirected edge, or parallel edges, are in
                different splits.
        """
        splits, known = graph.edge_split, graph.node_ids is self._nodes
        self._nodes = graph.node_ids
        if splits is None:  # possibly because it was prepared before
            self._supervision = self._supervision if known else None
            return graph
        source, target = graph.derived(EdgeEnds())
        edges = numbered(graph, source, target)
        pairs = {
            name: edges.take(torch.nonzero(splits == code).flatten().cpu().numpy())
            for code, name in enumerate(SPLITS, 1)
        }
        self._supervision = Supervision(pairs, KnownEdges.of(graph))
        self._splits = Seal({"edge_split": splits})
        return replace(without_edges(graph, splits > 1), edge_labels=None, edge_split=None)

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Return all local nodes, as any may be an end of a pair, here or on another rank."""
        return torch.arange(graph.num_local_nodes, device=graph.node_ids.device)

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        if self._supervision is None:
            return False
        count = len(self._supervision.pairs[split])
        return graph.comm.allreduce(count, where="pairs to be scored") > 0

    @in_step
    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        known = self._known(graph)
        true = known.pairs["train"]
        false = false_targets(known.edges, true, self.negatives, seed=self.seed, epoch=graph.epoch)
        pairs = _both(true, false)
        scores = self._scores(graph, output, pairs)
        truth = torch.zeros_like(scores)
        truth[: len(true)] = 1
        total = functional.binary_cross_entropy_with_logits(scores, truth, reduction="sum")
        return total / max(graph.comm.allreduce(len(scores), where="pairs"), 1)

    @in_step
    @torch.no_grad()
    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        names = ("mrr", f"hits@{self.hits_at}", "auc")
        if self._supervision is None:
            return dict.fromkeys(names, math.nan)
        true_N, false_NM = self._ranked(graph, output, self._sample(graph, split))
        comm, false_M = graph.comm, false_NM.flatten()
        labels = torch.cat([torch.ones_like(true_N), torch.zeros_like(false_M)]) > 0
        found = (
            mean_reciprocal_rank(comm, true_N, false_NM),
            hits_at(comm, true_N, false_M, [self.hits_at])[0],
            roc_auc(comm, torch.cat([true_N, false_M]), labels),
        )
        return dict(zip(names, found, strict=True))

    @in_step
    @torch.no_grad()
    def pairs(
        self, graph: PartitionedGraph, output: Tensor, chosen: NodePairs | None = None
    ) -> PairRows:
        """Return the probability that pairs are true: of `chosen`, if given.

        The default is the true pairs of valid and test, or all edges of a graph without a split.
        """
        pairs = self._held_out(graph) if chosen is None else chosen
        scores = torch.sigmoid(self._scores(graph, output, pairs))
        return PairRows(pairs, {"probabilities": scores.cpu().numpy()})

    def _held_out(self, graph: PartitionedGraph) -> NodePairs:
        if self._supervision is None:
            source, target = graph.derived(EdgeEnds())
        else:
            ends = [self._supervision.pairs[name] for name in ("valid", "test")]
            source = np.concatenate([pairs.source for pairs in ends])
            target = np.concatenate([pairs.target for pairs in ends])
        return numbered(graph, source, target)

    def stored(self) -> dict[str, Any]:
        return {
            "kind": "links",
            "metric": self.metric,
            "width": self.num_outputs,
            "decoder": name_of(self.module),
            "ranked_against": self.ranked_against,
            "seed": self.seed,
        }

    def _known(self, graph: PartitionedGraph) -> Supervision:
        if self._supervision is None or graph.edge_split is not None:
            raise InputError(
                "link prediction needs a graph whose edges are split (convert --link-split), "
                "without the validation and test edges: task.prepare(graph) returns it"
            )
        if self._splits.changed():
            raise InputError(
                "graph.edge_split was changed in place after task.prepare(graph), which divided "
                "the edges: change it before"
            )
        return self._supervision

    def _scores(self, graph: PartitionedGraph, output: Tensor, pairs: NodePairs) -> Tensor:
        return pair_values(graph, output, pairs, self.module)[:, 0]

    def _sample(self, graph: PartitionedGraph, split: str) -> NodePairs:
        """Return the true pairs; of train about as many as of valid and test together."""
        pairs = self._known(graph).pairs
        if split != "train":
            return pairs[split]
        counts = np.array([len(pairs[name]) for name in SPLITS], np.int64)
        train, valid, test = graph.comm.allreduce(counts, where="pairs").tolist()
        if valid + test == 0 or train == 0:
            return pairs["train"]
        chosen = share_of(pairs["train"].number, (valid + test) / train, self.seed)
        return pairs["train"].take(np.flatnonzero(chosen))

    def _ranked(
        self, graph: PartitionedGraph, output: Tensor, true: NodePairs
    ) -> tuple[Tensor, Tensor]:
        """Return scores of true pairs and of the false pairs of each, some pairs at a time."""
        known, step = self._known(graph), max(1, _AT_A_TIME // self.ranked_against)
        rounds = graph.comm.allreduce(-(-len(true) // step), "max", where="pieces of pairs")
        true_N = output.new_zeros(len(true))
        false_NM = output.new_zeros(len(true), self.ranked_against)
        for low in range(0, rounds * step, step):
            some = true.take(np.arange(low, max(low, min(low + step, len(true)))))
            # Training never draws for epoch 0.
            false = false_targets(known.edges, some, self.ranked_against, seed=self.seed, epoch=0)
            scores = self._scores(graph, output, _both(some, false))
            true_N[low : low + len(some)] = scores[: len(some)]
            rows = scores[len(some) :].reshape(len(some), self.ranked_against)
            false_NM[low : low + len(some)] = rows
        return true_N, false_NM


def _both(true: NodePairs, false_mK: np.ndarray) -> NodePairs:
    """Return the true pairs, followed by the false pairs of each."""
    count = false_mK.shape[1]
    return NodePairs(
        np.concatenate([true.source, np.repeat(true.source, count)]),
        np.concatenate([true.target, false_mK.reshape(-1)]),
        np.concatenate([true.number, np.repeat(true.number, count)]),
    )
