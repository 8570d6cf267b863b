"""Any message a user can write in torch, streamed over the ring and rematerialized in backward.

Forward runs `message` without autograd, piece by piece, and keeps only reduced rows. Backward
fetches remote rows again (mode `sar`), runs each piece under autograd, and sends the gradients of
remote rows back to their owners (SAR, Mostafa 2022, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph import Block, PartitionedGraph
from hpcgnn.kernels.checks import SHORT
from hpcgnn.sar import reductions
from hpcgnn.sar.halo import give_back, stream, take_rows
from hpcgnn.sar.reductions import Reduction
from hpcgnn.sar.rows import check_rows
from hpcgnn.sar.short import wire_type
from hpcgnn.sar.sums import in_degrees


@dataclass(frozen=True)
class EdgePiece:
    """What is known of some edges: each `[e, ...]`, or None where the graph has none."""

    weight: Tensor | None
    relation: Tensor | None
    features: Tensor | None


Message = Callable[[Tensor, Tensor, EdgePiece], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MessageSettings:
    """The user's function and how its results are reduced; `piece` edges are done at a time."""

    message: Message
    aggr: tuple[str, ...]
    piece: int = 1 << 16
    layer: int = 0


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
    """Reduced messages `[n, len(aggr) * M]`; collective.

    Args:
        parameters: everything with gradients that `message` uses.
        features_ED: edge features to use (and to give gradients to) instead of the graph's.
    """
    check_rows(graph, x_NF, who="messages")
    x_NF = x_NF.float() if x_NF.dtype in SHORT else x_NF
    wire = wire_type(x_NF)
    with torch.autocast(x_NF.device.type, enabled=False):
        result: Tensor = _Propagate.apply(graph, settings, wire, x_NF, features_ED, *parameters)
    return result


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        graph: PartitionedGraph,
        settings: MessageSettings,
        wire: torch.dtype,
        x_NF: Tensor,
        features_ED: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        run = _Pass(graph, settings, x_NF.detach(), features_ED)
        kept: list[Tensor] | None = None if graph.mode == "sar" else []
        # The same pieces in backward: else a product may round differently, and a maximum or the
        # random numbers of a piece are not found again.
        width = x_NF.shape[1]
        exchange, blocks = stream(
            graph, graph.in_edges, width, wire, take_rows(run.x_NF), where="messages forward",
            cut_for=width if kept is None else 0,
        )  # fmt: skip
        run.reduce(graph.in_edges.blocks[graph.in_edges.rank], run.x_NF, exchange.progress)
        for arrival in exchange:
            if kept is not None:
                kept.append(arrival.rows_HF.clone())
            run.reduce(blocks[arrival.index], arrival.rows_HF.to(x_NF.dtype), exchange.progress)
        ctx.run, ctx.kept, ctx.parameters, ctx.wire = run, kept, parameters, wire
        ctx.save_for_backward(x_NF, features_ED)
        return run.finish()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: _Pass = ctx.run
        graph, edges = run.graph, run.graph.in_edges
        run.start_backward(grads[0], ctx.parameters)
        run.differentiate(edges.blocks[edges.rank], run.x_NF, run.grad_x_NF)
        width, dtype = run.x_NF.shape[1], run.x_NF.dtype

        # Apart, since when a reply comes is a matter of chance, and rounding must not be.
        replied_NF = torch.zeros_like(run.grad_x_NF)

        def accept(rows: Tensor, grad_HF: Tensor) -> None:
            kernels.add_rows(grad_HF, rows, replied_NF)

        def produce(index: int, block: Block, out_HF: Tensor) -> None:
            grad_HF = out_HF if out_HF.dtype == dtype else torch.zeros_like(out_HF, dtype=dtype)
            run.differentiate(block, ctx.kept[index].to(dtype), grad_HF)
            out_HF.copy_(grad_HF)

        if ctx.kept is not None:
            give_back(graph, edges, width, ctx.wire, produce, accept, where="messages backward")
        else:
            exchange, blocks = stream(
                graph, edges, width, ctx.wire, take_rows(run.x_NF), where="messages backward",
                reply_width=width, on_reply=accept,
            )  # fmt: skip
            for arrival in exchange:
                grad_HF = torch.zeros_like(arrival.rows_HF, dtype=dtype)
                run.differentiate(blocks[arrival.index], arrival.rows_HF.to(dtype), grad_HF)
                arrival.reply(grad_HF)
        run.grad_x_NF += replied_NF
        return None, None, None, run.grad_x_NF, run.grad_features_ED, *run.grad_parameters


class _Pass:
    """State of one propagation: reductions in forward, gradients in backward."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: MessageSettings,
        x_NF: Tensor,
        features_ED: Tensor | None,
    ) -> None:
        self.graph, self.settings = graph, settings
        self.x_NF, self.features_ED = x_NF.contiguous(), features_ED
        self.epoch = graph.epoch
        self.reductions: list[Reduction] = []
        self.width = 0
        sizes = [block.columns.shape[0] for block in graph.in_edges.blocks]
        self.first_edge = [sum(sizes[:p]) for p in range(len(sizes))]

    def reduce(self, block: Block, x_HF: Tensor, progress: Callable[[], None]) -> None:
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            with self._random(block, number), torch.no_grad():
                value, logit = self._message(x_HF[columns], self.x_NF[rows], block, edges)
            self._begin(value)
            for reduction in self.reductions:
                reduction.add(rows, value, logit)
            progress()

    def finish(self) -> Tensor:
        if not self.reductions:
            self._begin(self._probe())
        degrees_N = in_degrees(self.graph)
        return torch.cat([reduction.finish(degrees_N) for reduction in self.reductions], dim=1)

    def start_backward(self, grad_NM: Tensor, parameters: Sequence[Tensor]) -> None:
        width = grad_NM.shape[1] // len(self.reductions)
        for reduction, grad in zip(self.reductions, grad_NM.split(width, dim=1), strict=True):
            reduction.prepare(grad)
        self.parameters = parameters
        self.grad_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        self.grad_x_NF = torch.zeros_like(self.x_NF)
        wanted = self.features_ED is not None and self.features_ED.requires_grad
        self.grad_features_ED = torch.zeros_like(self.features_ED) if wanted else None  # type: ignore[arg-type]

    def differentiate(self, block: Block, x_HF: Tensor, grad_HF: Tensor) -> None:
        """Run the pieces again under autograd; add gradients of `x_HF` into `grad_HF`."""
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            x_src = x_HF[columns].requires_grad_()
            x_dst = self.x_NF[rows].requires_grad_()
            features = self._features(block, edges)
            inputs = [x_src, x_dst, *self.parameters]
            if self.grad_features_ED is not None and features is not None:
                inputs.append(features.requires_grad_())
            with self._random(block, number), torch.enable_grad():
                value, logit = self._message(x_src, x_dst, block, edges, features)
            grads = self._gradients(inputs, rows, value, logit)
            _add(grad_HF, columns, grads[0])
            _add(self.grad_x_NF, rows, grads[1])
            for total, grad in zip(self.grad_parameters, grads[2:], strict=False):
                if grad is not None:
                    total += grad
            if self.grad_features_ED is not None and grads[-1] is not None:
                self.grad_features_ED[edges + self.first_edge[block.peer]] = grads[-1]

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
            like_NM = value.new_empty(len(self.x_NF), value.shape[1])
            self.reductions = [reductions.make(name, like_NM) for name in self.settings.aggr]

    def _probe(self) -> Tensor:
        """A rank without edges learns the width from a message of no edges."""
        block = self.graph.in_edges.blocks[self.graph.in_edges.rank]
        none = torch.zeros(0, dtype=torch.int64, device=self.x_NF.device)
        with torch.no_grad():
            one = self.x_NF.new_zeros(1, self.x_NF.shape[1])
            blank = EdgePiece(
                None if block.weight is None else one.new_ones(1),
                None if block.relation is None else none.new_zeros(1),
                None
                if self._features(block, none) is None
                else one.new_zeros(
                    1,
                    self._features(block, none).shape[1],  # type: ignore[union-attr]
                ),
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
    if grad is not None:
        target.index_add_(0, rows, grad)
