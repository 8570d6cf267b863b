"""A function of pairs of nodes, whose ends may lie on any two ranks.

Pairs are processed in pieces: the rows of a piece's nodes are fetched from their owners, the
function is applied, and the rows are freed. Only the function's values are kept: backward fetches
the rows again, runs the function under autograd, and returns the gradients of rows to their owners.
So rows of remote nodes need the memory of one piece, whatever the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces
from hpcgnn.sar.autograd import first_order, gradients
from hpcgnn.sar.captured import Called, Finder, Modes, Originals, Replacer
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.hubs import MANY, RowSums, Totals, often
from hpcgnn.sar.message_pass import add_to_rows

PairFunction = Callable[[Tensor, Tensor], Tensor]
PIECE = 1 << 15


@dataclass(frozen=True)
class NodePairs:
    """Pairs of nodes that this rank computes.

    Attributes:
        source, target: int64 `[m]`, the places of the nodes (`graph.places`).
        number: int64 `[m]`, the pair's number among those of all ranks, the same for any number of
            ranks.
    """

    source: np.ndarray
    target: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: np.ndarray) -> NodePairs:
        """Return some of the pairs, with unchanged numbers."""
        return NodePairs(self.source[rows], self.target[rows], self.number[rows])


def pair_values(
    graph: PartitionedGraph,
    x_NK: Tensor,
    pairs: NodePairs,
    function: PairFunction,
    *,
    piece: int = PIECE,
) -> Tensor:
    """Return `function(x[source], x[target])` per pair: `[m, G]`; collective, also without pairs.

    Args:
        x_NK: a row per local node.
        function: takes and returns a row per pair, in torch; an nn.Module or a plain function.
            Every tensor that it uses receives gradients.
        piece: number of pairs processed at a time.
    """
    check_rows(graph, x_NK, who="pairs")
    with graph.comm.unfinished.within("pairs"):
        run = _Run(graph, pairs, function, piece)
        run.forward(x_NK.detach())
    result: Tensor = _PairValues.apply(run, x_NK, *run.finder.found.values())
    return result


class _PairValues(torch.autograd.Function):
    """Connects values that were computed without autograd to their inputs."""

    @staticmethod
    def forward(ctx: Any, run: _Run, x_NK: Tensor, *used: Tensor) -> Tensor:
        ctx.run, run.finder.found, ctx.originals = run, {}, Originals(used)
        ctx.save_for_backward(x_NK, *used)
        return run.outcome.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, *saved = ctx.saved_tensors
        used, _ = ctx.originals.of(saved)
        with ctx.run.graph.comm.unfinished.within("backward of pairs"):
            return None, *ctx.run.backward(x_NK.detach(), used, grads[0])


class _Taken(torch.autograd.Function):
    """`rows[at]`, whose gradient stays accurate if one row is taken very often."""

    @staticmethod
    def forward(ctx: Any, rows_UK: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.count = len(rows_UK)
        return rows_UK[at]

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        grad_UK = grads[0].new_zeros(ctx.count, *grads[0].shape[1:])
        add_to_rows(grad_UK, at, grads[0])
        return grad_UK, None


class _Run:
    """One evaluation of a function over a set of pairs, and its backward."""

    def __init__(
        self, graph: PartitionedGraph, pairs: NodePairs, function: PairFunction, piece: int
    ) -> None:
        self.graph, self.pairs, self.function, self.piece = graph, pairs, function, piece
        self.places = graph.derived(FindPlaces())
        self.epoch = graph.epoch
        module = function if isinstance(function, torch.nn.Module) else None
        self.modes, self.attributes = Modes.of(module)
        self.called = Called()
        self.finder = Finder([])
        self.outcome: list[Tensor] = []
        self.times_N: Tensor | None = None  # fetches of each row, if there are many
        own = -(-len(pairs) // piece)
        self.rounds = graph.comm.allreduce(own, "max", where="pieces of pairs")

    @cached_property
    def order(self) -> np.ndarray:
        """The order of the pairs, by remote node: own nodes first, then those of rank + 1."""
        source, target = self.pairs.source, self.pairs.target
        places = self.places
        near = [int(places.is_local(ends).sum()) for ends in (source, target)]
        if 2 * max(near) < len(source):
            return np.arange(len(source))  # the given order: both ends are mostly remote
        far = source if near[0] < near[1] else target
        return np.argsort((far - places.first) % max(self.graph.num_nodes, 1), kind="stable")

    @torch.no_grad()
    def forward(self, x_NK: Tensor) -> None:
        """Put the values in `outcome`."""
        values = x_NK.new_empty(0)
        if self.rounds * self.graph.comm.size > MANY:
            self.times_N = torch.zeros(len(x_NK), dtype=torch.int64, device=x_NK.device)
        for number in range(self.rounds):
            piece = self._fetch(x_NK, number)
            if self.times_N is not None:
                for rows in piece.asked:
                    self.times_N[rows] += 1
            with self._random(number), self.finder, self.called:
                found = self._apply(piece.rows_UK, piece)
            if not number:
                values = found.new_empty(len(self.pairs), found.shape[1])
            values[piece.at] = found
        if not self.rounds:
            values = self._apply(x_NK.new_zeros(1, x_NK.shape[1]), _Piece.empty(x_NK))
        self.outcome.append(values)

    def backward(
        self, x_NK: Tensor, used: list[Tensor], grad_mG: Tensor
    ) -> tuple[Tensor | None, ...]:
        replacer = Replacer(used)
        grad_x_NK, grads = torch.zeros_like(x_NK), Totals(used)
        sums = RowSums(grad_x_NK)
        sums.begin(None if self.times_N is None else often(self.times_N))
        for number in range(self.rounds):
            piece = self._fetch(x_NK, number)
            rows_UK = piece.rows_UK.requires_grad_()
            with (
                self.called.restored(),
                self.modes.restored(self.attributes),
                self._random(number),
                torch.enable_grad(),
                replacer,
            ):
                values = self._apply(rows_UK, piece)
            inputs = [rows_UK, *replacer.leaves]
            found: tuple[Tensor | None, ...] = (None,) * len(inputs)
            if values.requires_grad:
                found = gradients([values], inputs, [grad_mG[piece.at].to(values.dtype)])
            grads.add(found[1:])
            given = found[0] if found[0] is not None else torch.zeros_like(piece.rows_UK)
            self._return(given, piece, grad_x_NK, sums)
        sums.end()
        return grad_x_NK, *grads.result()

    def _apply(self, rows_UK: Tensor, piece: _Piece) -> Tensor:
        x_src, x_dst = (_Taken.apply(rows_UK, at) for at in (piece.source, piece.target))
        values = self.function(x_src, x_dst)
        return values.unsqueeze(1) if values.dim() == 1 else values.flatten(1)

    def _fetch(self, x_NK: Tensor, number: int) -> _Piece:
        """Return the pairs of a round, with each node's row once; collective."""
        at = self.order[number * self.piece : (number + 1) * self.piece]
        ends = np.concatenate([self.pairs.source[at], self.pairs.target[at]])
        once, back = np.unique(ends, return_inverse=True)
        comm, first_P1 = self.graph.comm, self.places.first_P1
        wanted = np.split(once, np.searchsorted(once, first_P1[1:-1]))
        asked = [
            torch.from_numpy(rows - self.places.first).to(x_NK.device)
            for rows in comm.alltoallv(wanted, where="nodes of pairs")
        ]
        sent = [x_NK[rows].cpu().numpy() for rows in asked]
        rows = np.concatenate(comm.alltoallv(sent, where="rows of pairs"))
        row = torch.from_numpy(back).to(x_NK.device)
        return _Piece(
            at=torch.from_numpy(at).to(x_NK.device),
            source=row[: len(at)],
            target=row[len(at) :],
            rows_UK=torch.from_numpy(rows).to(x_NK.device),
            counts_P=[len(part) for part in wanted],
            asked=asked,
        )

    def _return(self, grad_UK: Tensor, piece: _Piece, grad_x_NK: Tensor, sums: RowSums) -> None:
        """Return gradients of fetched rows to their owners, which add them in rank order."""
        sent = [rows.cpu().numpy() for rows in grad_UK.split(piece.counts_P)]
        told = self.graph.comm.alltoallv(sent, where="gradients of pairs")
        for rows, grad in zip(piece.asked, told, strict=True):
            grad_x_NK.index_add_(0, rows, torch.from_numpy(grad).to(grad_x_NK.device))
            sums.added()

    @contextmanager
    def _random(self, number: int) -> Iterator[None]:
        """Draw the same random numbers in forward and backward within the context.

        They depend on the number of ranks, as do the pairs that form a piece. torch's own random
        state is restored after it.
        """
        device = self.graph.node_ids.device
        key = (self.graph.seed, self.epoch, self.graph.comm.rank, number)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(hash(key) & (2**63 - 1))
            yield


@dataclass(frozen=True)
class _Piece:
    """Some pairs: their positions among all pairs of this rank, and the rows of their nodes."""

    at: Tensor
    source: Tensor  # int64, into rows_UK
    target: Tensor
    rows_UK: Tensor
    counts_P: list[int]  # number of these rows on each rank
    asked: list[Tensor]  # local rows that each rank fetches

    @staticmethod
    def empty(like: Tensor) -> _Piece:
        none = torch.zeros(0, dtype=torch.int64, device=like.device)
        return _Piece(none, none, none, like[:0], [], [])
