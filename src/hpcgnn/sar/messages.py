"""Any message a user can write in torch, streamed over the ring and rematerialized in backward.

Forward runs `message` without autograd, piece by piece, and keeps only reduced rows. Backward
fetches remote rows again (mode `sar`), runs each piece under autograd, and sends the gradients of
remote rows back to their owners (SAR, Mostafa 2022, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import SHORT
from hpcgnn.sar import reductions
from hpcgnn.sar.autograd import Finder, Modes, Replacer, first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.mixed_precision import wire_type
from hpcgnn.sar.reductions import Reduction
from hpcgnn.sar.stream import Payload, Progress, return_gradients, stream, stream_and_return
from hpcgnn.sar.sum import in_degrees


@dataclass(frozen=True)
class EdgePiece:
    """What is known of some edges: each `[e, ...]`, or None where the graph has none."""

    weight: Tensor | None
    relation: Tensor | None
    features: Tensor | None


MANY = 128  # terms that float32 adds up one by one

Message = Callable[[Tensor, Tensor, EdgePiece], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MessageSettings:
    """The user's function and how its results are reduced; `piece` edges are done at a time."""

    message: Message
    aggr: tuple[str, ...]
    piece: int = 1 << 16
    layer: int = 0
    module: torch.nn.Module | None = None  # what `message` belongs to


def edge_features(graph: PartitionedGraph) -> Tensor | None:
    """Features of all edges into local nodes, `[E, D]`, in the order that messages use."""
    rows = [block.features for block in graph.in_edges.blocks if block.features is not None]
    return torch.cat(rows) if rows else None


def propagate(
    graph: PartitionedGraph,
    x_NF: Tensor,
    settings: MessageSettings,
    parameters: Sequence[Tensor],
    features_ED: Tensor | None = None,
) -> Tensor:
    """Reduced messages `[n, len(aggr) * G]`; collective.

    Args:
        parameters: everything with gradients that `message` uses.
        features_ED: edge features to use (and to give gradients to) instead of the graph's.
    """
    check_rows(graph, x_NF, who="messages")
    x_NF = x_NF.float() if x_NF.dtype in SHORT else x_NF
    run = _Pass(graph, settings, wire_type(x_NF))
    with torch.autocast(x_NF.device.type, enabled=False):
        run.forward(x_NF, features_ED, parameters)
        result: Tensor = _Propagate.apply(
            run, x_NF, features_ED, len(parameters), *parameters, *run.finder.found.values()
        )
    return result


class _Propagate(torch.autograd.Function):
    """Ties what a pass has computed to autograd, which holds all arrays until backward."""

    @staticmethod
    def forward(
        ctx: Any,
        run: _Pass,
        x_NF: Tensor,
        features_ED: Tensor | None,
        num_parameters: int,
        *used: Tensor,
    ) -> Tensor:
        out_NG, attributes, kept = run.outcome.pop()
        states = [reduction.state() for reduction in run.reductions]
        run.finder.found = {}
        ctx.run, ctx.num_parameters = run, num_parameters
        groups = [list(used), attributes, kept, *states]
        ctx.sizes = [len(group) for group in groups]
        ctx.save_for_backward(x_NF, features_ED, *(t for group in groups for t in group))
        return out_NG

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, features_ED, *rest = ctx.saved_tensors
        groups = []
        for size in ctx.sizes:
            groups.append(rest[:size])
            rest = rest[size:]
        used, attributes, kept, *states = groups
        run = copy(ctx.run)
        run.reductions = [copy(reduction) for reduction in run.reductions]
        for reduction, state in zip(run.reductions, states, strict=True):
            reduction.restore(state)
        run.read(x_NF, features_ED)
        parameters, captured = used[: ctx.num_parameters], used[ctx.num_parameters :]
        with run.modes.restored(attributes):
            run.start_backward(grads[0], parameters, captured)
            run.backward(kept)
        return None, run.grad_x_NF, run.grad_features_ED, None, *run.grad_parameters


class _Pass:
    """State of one propagation: reductions in forward, gradients in backward."""

    def __init__(
        self, graph: PartitionedGraph, settings: MessageSettings, wire: torch.dtype
    ) -> None:
        self.graph, self.settings, self.wire = graph, settings, wire
        self.epoch, self.mode = graph.epoch, graph.mode
        self.reductions: list[Reduction] = []
        self.outcome: list[tuple[Tensor, list[Tensor], list[Tensor]]] = []
        sizes = [block.columns.shape[0] for block in graph.in_edges.blocks]
        self.first_edge = [sum(sizes[:p]) for p in range(len(sizes))]

    def read(self, x_NF: Tensor, features_ED: Tensor | None) -> None:
        self.x_NF, self.features_ED = x_NF.detach().contiguous(), features_ED

    @torch.no_grad()
    def forward(
        self, x_NF: Tensor, features_ED: Tensor | None, parameters: Sequence[Tensor]
    ) -> None:
        """Leaves result, tensors among the modules' attributes, and kept rows in `outcome`."""
        self.read(x_NF, features_ED)
        self.modes, attributes = Modes.of(self.settings.module)
        self.finder = Finder(parameters)
        graph, width = self.graph, x_NF.shape[1]
        kept: list[Tensor] = []
        # The same pieces in backward: else a product may round differently, and a maximum or the
        # random numbers of a piece are not found again.
        for block, (x_MF,), progress in stream(
            graph,
            graph.in_edges,
            Payload((self.x_NF,), self.wire),
            where="messages forward",
            kept=None if self.mode == "sar" else kept,
            cut_for=width if self.mode == "sar" else 0,
        ):
            self.reduce(block, x_MF.to(x_NF.dtype), progress)
        self.outcome.append((self.finish(), attributes, kept))
        del self.x_NF, self.features_ED

    def backward(self, kept: list[Tensor]) -> None:
        """Gradients of everything, over the ring."""
        graph, edges = self.graph, self.graph.in_edges
        width, dtype = self.x_NF.shape[1], self.x_NF.dtype

        # Apart, since when a reply comes is a matter of chance, and rounding must not be.
        replied_NF = torch.zeros_like(self.grad_x_NF)

        def accept(rows: Tensor, grad_MF: Tensor) -> None:
            kernels.add_rows(grad_MF, rows, replied_NF)

        def differentiate_here(progress: Progress) -> None:
            self.differentiate(edges.blocks[edges.rank], self.x_NF, self.grad_x_NF, progress)

        def produce(index: int, block: Block, out_MF: Tensor) -> None:
            grad_MF = out_MF if out_MF.dtype == dtype else torch.zeros_like(out_MF, dtype=dtype)
            self.differentiate(block, kept[index].to(dtype), grad_MF)
            out_MF.copy_(grad_MF)

        if self.mode != "sar":
            return_gradients(
                graph,
                edges,
                width,
                self.wire,
                produce,
                accept,
                where="messages backward",
                first=differentiate_here,
            )
        else:
            for block, (x_MF,), grad_MF, progress in stream_and_return(
                graph,
                edges,
                Payload((self.x_NF,), self.wire),
                self.grad_x_NF,
                accept,
                where="messages backward",
            ):
                self.differentiate(block, x_MF.to(dtype), grad_MF, progress)
        self.grad_x_NF += replied_NF

    def reduce(self, block: Block, x_MF: Tensor, progress: Progress) -> None:
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            with self._random(block, number), self.finder:
                value, logit = self._message(x_MF[columns], self.x_NF[rows], block, edges)
            self._begin(value)
            for reduction in self.reductions:
                reduction.add(rows, value, logit)
            progress()

    def finish(self) -> Tensor:
        if not self.reductions:
            with self.finder:
                self._begin(self._probe())
        degrees_N = in_degrees(self.graph)
        return torch.cat([reduction.finish(degrees_N) for reduction in self.reductions], dim=1)

    def start_backward(
        self, grad_NG: Tensor, parameters: Sequence[Tensor], captured: Sequence[Tensor]
    ) -> None:
        width = grad_NG.shape[1] // len(self.reductions)
        for reduction, grad in zip(self.reductions, grad_NG.split(width, dim=1), strict=True):
            reduction.prepare(grad)
        self.replacer = Replacer(captured)
        self.parameters = [*parameters, *self.replacer.leaves]
        self.grad_parameters = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.grad_x_NF = torch.zeros_like(self.x_NF)
        wanted = self.features_ED is not None and self.features_ED.requires_grad
        self.grad_features_ED = torch.zeros_like(self.features_ED) if wanted else None  # type: ignore[arg-type]

    def differentiate(
        self, block: Block, x_MF: Tensor, grad_MF: Tensor, progress: Progress | None = None
    ) -> None:
        """Run the pieces again under autograd; add gradients of `x_MF` into `grad_MF`."""
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            x_src = x_MF[columns].requires_grad_()
            x_dst = self.x_NF[rows].requires_grad_()
            features = self._features(block, edges)
            inputs = [x_src, x_dst, *self.parameters]
            if self.grad_features_ED is not None and features is not None:
                inputs.append(features.requires_grad_())
            with self._random(block, number), torch.enable_grad(), self.replacer:
                value, logit = self._message(x_src, x_dst, block, edges, features)
            grads = self._gradients(inputs, rows, value, logit)
            _add(grad_MF, columns, grads[0])
            _add(self.grad_x_NF, rows, grads[1])
            for total, grad in zip(self.grad_parameters, grads[2:], strict=False):
                if grad is not None:
                    total += grad
            if self.grad_features_ED is not None and grads[-1] is not None:
                self.grad_features_ED[edges + self.first_edge[block.peer]] = grads[-1]
            if progress is not None:
                progress()

    def _gradients(
        self, inputs: list[Tensor], rows: Tensor, value: Tensor, logit: Tensor | None
    ) -> Sequence[Tensor | None]:
        grad_value = torch.zeros_like(value)
        grad_logit = None if logit is None else torch.zeros_like(logit)
        plain_logit = None if logit is None else logit.detach()
        for reduction in self.reductions:
            part, logit_part = reduction.gradient(rows, value.detach(), plain_logit)
            grad_value += part
            if grad_logit is not None and logit_part is not None:
                grad_logit += logit_part
        outputs, seeds = [value], [grad_value]
        if logit is not None and grad_logit is not None:
            outputs.append(logit)
            seeds.append(grad_logit)
        pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        return torch.autograd.grad(
            [o for o, _ in pairs], inputs, [s for _, s in pairs], allow_unused=True
        )

    def _message(
        self,
        x_src: Tensor,
        x_dst: Tensor,
        block: Block,
        edges: Tensor,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        piece = EdgePiece(
            weight=None if block.weight is None else block.weight[edges],
            relation=None if block.relation is None else block.relation[edges],
            features=self._features(block, edges) if features is None else features,
        )
        result = self.settings.message(x_src, x_dst, piece)
        if isinstance(result, Tensor):
            return result.reshape(len(edges), -1), None
        value, logit = result
        shape = logit.shape
        try:
            logit = logit.reshape(*shape, *[1] * (value.dim() - logit.dim())).expand_as(value)
        except RuntimeError:
            raise InputError(
                "message: the logits' shape doesn't fit the values', "
                f"{list(shape)} and {list(value.shape)}"
            ) from None
        return value.reshape(len(edges), -1), logit.reshape(len(edges), -1)

    def _features(self, block: Block, edges: Tensor) -> Tensor | None:
        if self.features_ED is not None:
            return self.features_ED.detach()[edges + self.first_edge[block.peer]]
        return None if block.features is None else block.features[edges]

    def _pieces(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """(destination rows, edge positions) of at most `piece` edges at a time, int64."""
        counts = block.end - block.begin
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        for low in range(0, total, self.settings.piece):
            flat = torch.arange(low, min(low + self.settings.piece, total), device=ends.device)
            row = torch.searchsorted(ends, flat, right=True)
            edges = block.begin[row] + flat - (ends[row] - counts[row])
            yield (row if block.rows is None else block.rows[row].long()), edges

    def _random(self, block: Block, piece: int) -> _Seeded:
        """The same random numbers inside `message` in forward and in backward."""
        key = (self.graph.seed, self.epoch, self.settings.layer, self.graph.in_edges.rank)
        seed = hash((*key, block.peer, block.column_offset, piece)) & (2**63 - 1)
        return _Seeded(seed, self.x_NF.device)

    def _begin(self, value: Tensor) -> None:
        if not self.reductions:
            like_NG = value.new_empty(len(self.x_NF), value.shape[1])
            self.reductions = [reductions.make(name, like_NG) for name in self.settings.aggr]

    def _probe(self) -> Tensor:
        """A rank without edges learns the width from a message of no edges."""
        block = self.graph.in_edges.blocks[self.graph.in_edges.rank]
        none = torch.zeros(0, dtype=torch.int64, device=self.x_NF.device)
        with torch.no_grad():
            one = self.x_NF.new_zeros(1, self.x_NF.shape[1])
            features = self._features(block, none)
            blank = EdgePiece(
                weight=None if block.weight is None else one.new_ones(1),
                relation=None if block.relation is None else none.new_zeros(1),
                features=None if features is None else one.new_zeros(1, features.shape[1]),
            )
            result = self.settings.message(one, one, blank)
        value = result if isinstance(result, Tensor) else result[0]
        return value.reshape(1, -1)


class _Seeded:
    """Torch's generators seeded inside the block and restored after."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.on_gpu = seed, device.type == "cuda"

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        torch.random.default_generator.manual_seed(self.seed)
        if self.on_gpu:
            self.gpu_state = torch.cuda.get_rng_state()
            torch.cuda.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        torch.random.set_rng_state(self.state)
        if self.on_gpu:
            torch.cuda.set_rng_state(self.gpu_state)


def _add(target: Tensor, rows: Tensor, grad: Tensor | None) -> None:
    """`target[rows[e]] += grad[e]`; rows that get more than `MANY` edges, by way of float64."""
    if grad is None:
        return
    ordered = rows.sort().values
    hubs = ordered[MANY:][ordered[MANY:] == ordered[:-MANY]]
    if len(hubs):
        hubs = hubs.unique()
        many = torch.isin(rows, hubs)
        sums = grad.new_zeros(len(hubs), grad.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.searchsorted(hubs, rows[many]), grad[many].double())
        target.index_add_(0, hubs, sums.to(target.dtype))
        rows, grad = rows[~many], grad[~many]
    target.index_add_(0, rows, grad)
