"""One propagation of messages over the ring: forward without autograd, backward with it.

Forward keeps the reduced rows, and new edge states if the message returns any. Backward fetches
remote rows again (mode `sar`) and runs the same pieces under autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar import reductions
from hpcgnn.sar.aggregation import in_degrees
from hpcgnn.sar.attention import halo_ids
from hpcgnn.sar.autograd import gradients
from hpcgnn.sar.captured import Finder, Modes, Replacer
from hpcgnn.sar.hubs import MANY, HubRows, Returned, RowSums, Totals, often
from hpcgnn.sar.reductions import Reduction
from hpcgnn.sar.stream import (
    Payload,
    return_gradients,
    stream,
    stream_and_return,
)
from hpcgnn.sar.turns import Progress

_SOURCE, _TARGET = 0x9E3779B97F4A7C15 - (1 << 64), 0xC2B2AE3D27D4EB4F - (1 << 64)


@dataclass(frozen=True)
class EdgePiece:
    """Properties of some edges, each `[e, ...]`, or None if the graph or layer doesn't have them.

    Attributes:
        weight, relation, features: the graph's.
        state: the edges' states, in a layer that has them.
        kept: `[e, heads]`, 0 for what dropout drops and 1 / (1 - p) for what it keeps, the same for
            any number of ranks; None without dropout.
    """

    weight: Tensor | None
    relation: Tensor | None
    features: Tensor | None
    state: Tensor | None = None
    kept: Tensor | None = None


Message = Callable[[Tensor, Tensor, EdgePiece], Any]


@dataclass(frozen=True)
class MessageSettings:
    """The user's function and how its results are reduced.

    Attributes:
        message: returns a value, or (value, logit); with `states`, new edge states, or (states,
            either of these).
        piece: number of edges processed at a time.
        layer: number that gives each layer of a model its own random numbers.
        module: the module that `message` belongs to.
        dropout, heads: settings of `EdgePiece.kept`.
    """

    message: Message
    aggr: tuple[str, ...]
    piece: int = 1 << 16
    layer: int = 0
    module: torch.nn.Module | None = None
    states: bool = False
    dropout: float = 0.0
    heads: int = 1


@dataclass(frozen=True)
class Result:
    """The results of a message, as matrices with a row per edge."""

    value: Tensor
    logit: Tensor | None
    state: Tensor | None


class MessagePass:
    """The state of one propagation: reductions in forward, gradients in backward.

    Source rows are `x_NF`, destination rows `y_NG`, which may be the same tensor; `edges_ED` are
    edge states, or edge features that replace the graph's own.
    """

    def __init__(
        self, graph: PartitionedGraph, settings: MessageSettings, wire: torch.dtype
    ) -> None:
        self.graph, self.settings, self.wire = graph, settings, wire
        self.epoch, self.mode = graph.epoch, graph.mode
        self.reductions: list[Reduction] = []
        self.outcome: list[tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]] = []
        sizes = [block.columns.shape[0] for block in graph.in_edges.blocks]
        self.first_edge = [sum(sizes[:p]) for p in range(len(sizes))]
        self.num_edges = sum(sizes)
        self.state_ED: Tensor | None = None

    def read(self, x_NF: Tensor, y_NG: Tensor | None, edges_ED: Tensor | None) -> None:
        self.x_NF, self.edges_ED = x_NF.detach().contiguous(), edges_ED
        self.y_NG = self.x_NF if y_NG is None else y_NG.detach()

    @torch.no_grad()
    def forward(
        self,
        x_NF: Tensor,
        y_NG: Tensor | None,
        edges_ED: Tensor | None,
        parameters: Sequence[Tensor],
    ) -> None:
        """Put reduced rows, new states, tensor attributes of modules and kept rows in `outcome`."""
        self.read(x_NF, y_NG, edges_ED)
        self.modes, attributes = Modes.of(self.settings.module)
        self.finder = Finder(parameters)
        graph, width = self.graph, x_NF.shape[1]
        kept: list[Tensor] = []
        # Messages are cut as in backward: with other pieces, a product may round differently, and
        # backward would not find a maximum or a piece's random numbers again.
        for block, (x_MF,), progress in stream(
            graph,
            graph.in_edges,
            Payload((self.x_NF,), self.wire),
            where="messages forward",
            kept=None if self.mode == "sar" else kept,
            cut_for=width if self.mode == "sar" else 0,
        ):
            self.reduce(block, x_MF.to(x_NF.dtype), progress)
        reduced_NG = self.finish()
        self.outcome.append((reduced_NG, self.state_ED, attributes, kept))
        del self.x_NF, self.y_NG, self.edges_ED, self.state_ED

    def backward(self, kept: list[Tensor]) -> None:
        """Compute all gradients, over the ring."""
        graph, edges = self.graph, self.graph.in_edges
        width, dtype = self.x_NF.shape[1], self.x_NF.dtype

        # Summed separately: replies arrive in any order, which must not change the rounding.
        returned = Returned(edges, torch.zeros_like(self.grad_x_NF))

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
                returned.accept,
                where="messages backward",
                first=differentiate_here,
            )
        else:
            for block, (x_MF,), grad_MF, progress in stream_and_return(
                graph,
                edges,
                Payload((self.x_NF,), self.wire),
                self.grad_x_NF,
                returned.accept,
                where="messages backward",
            ):
                self.differentiate(block, x_MF.to(dtype), grad_MF, progress)
        returned.end()
        self.targets.end()
        self.grad_x_NF += returned.matrices[0]

    def reduce(self, block: Block, x_MF: Tensor, progress: Progress) -> None:
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            piece = self._edges(block, rows, columns, edges)
            with self._random(block, number), self.finder:
                result = self._message(x_MF[columns], self.y_NG[rows], piece)
            self._begin(result)
            for reduction in self.reductions:
                reduction.add(rows, result.value, result.logit)
            if self.state_ED is not None and result.state is not None:
                self.state_ED[edges + self.first_edge[block.peer]] = result.state
            progress()

    def finish(self) -> Tensor:
        if not self.reductions:
            with self.finder:
                self._begin(self._probe())
        degrees_N = in_degrees(self.graph)
        return torch.cat([reduction.finish(degrees_N) for reduction in self.reductions], dim=1)

    def start_backward(
        self,
        grad_NG: Tensor | None,
        grad_state_ED: Tensor | None,
        parameters: Sequence[Tensor],
        captured: Sequence[Tensor],
    ) -> None:
        if grad_NG is None:  # only the states were used
            self.reductions = []
        else:
            width = grad_NG.shape[1] // len(self.reductions)
            for reduction, grad in zip(self.reductions, grad_NG.split(width, dim=1), strict=True):
                reduction.prepare(grad)
        self.grad_state_ED = grad_state_ED
        self.replacer = Replacer(captured)
        self.parameters = [*parameters, *self.replacer.leaves]
        self.grad_parameters = Totals(self.parameters)
        self.grad_x_NF = torch.zeros_like(self.x_NF)
        together = self.y_NG is self.x_NF
        self.grad_y_NG = self.grad_x_NF if together else torch.zeros_like(self.y_NG)
        self.targets = self._target_sums()
        wanted = self.edges_ED is not None and self.edges_ED.requires_grad
        self.grad_edges_ED = torch.zeros_like(self.edges_ED) if wanted else None  # type: ignore[arg-type]

    def differentiate(
        self, block: Block, x_MF: Tensor, grad_MF: Tensor, progress: Progress | None = None
    ) -> None:
        """Run the pieces again under autograd; add the gradients of `x_MF` to `grad_MF`."""
        sources = self._source_sums(block, grad_MF)
        for number, (rows, edges) in enumerate(self._pieces(block)):
            columns = (block.columns[edges] - block.column_offset).long()
            x_src = x_MF[columns].requires_grad_()
            x_dst = self.y_NG[rows].requires_grad_()
            piece = self._edges(block, rows, columns, edges)
            inputs = [x_src, x_dst, *self.parameters]
            given = piece.state if self.settings.states else piece.features
            if self.grad_edges_ED is not None and given is not None:
                inputs.append(given.requires_grad_())
            with self._random(block, number), torch.enable_grad(), self.replacer:
                result = self._message(x_src, x_dst, piece)
            places = edges + self.first_edge[block.peer]
            grads = self._gradients(inputs, rows, places, result)
            add_to_rows(grad_MF, columns, grads[0])
            sources.added()
            add_to_rows(self.grad_y_NG, rows, grads[1])
            self.targets.added()
            self.grad_parameters.add(grads[2 : 2 + len(self.parameters)])
            if self.grad_edges_ED is not None and grads[-1] is not None:
                self.grad_edges_ED[places] = grads[-1]
            if progress is not None:
                progress()
        sources.end()

    def _target_sums(self) -> RowSums:
        """Return the sums of gradients of destinations, to which pieces of all messages add."""
        graph, width, reply = self.graph, self.x_NF.shape[1], 0
        if self.mode == "sar":
            reply = width
        most = graph.ring.rows_per_message(width, self.wire, reply, at_once=graph.execution.at_once)
        sums = RowSums(self.grad_y_NG)
        hubs = HubRows(len(self.grad_y_NG), most, local=True, piece=self.settings.piece)
        sums.begin(graph.in_edges.derived(hubs))
        return sums

    def _source_sums(self, block: Block, grad_MF: Tensor) -> RowSums:
        """Return the sums of source gradients; a source may have edges in all pieces of a block."""
        sums = RowSums(grad_MF)
        if block.num_edges > MANY * self.settings.piece:
            times_M = torch.zeros(len(grad_MF), dtype=torch.int64, device=grad_MF.device)
            for _, edges in self._pieces(block):
                times_M[(block.columns[edges] - block.column_offset).long().unique()] += 1
            sums.begin(often(times_M))
        return sums

    def _gradients(
        self, inputs: list[Tensor], rows: Tensor, places: Tensor, result: Result
    ) -> Sequence[Tensor | None]:
        value, logit = result.value, result.logit
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
        if result.state is not None and self.grad_state_ED is not None:
            outputs.append(result.state)
            seeds.append(self.grad_state_ED[places])
        pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        return gradients([o for o, _ in pairs], inputs, [s for _, s in pairs])

    def _message(self, x_src: Tensor, x_dst: Tensor, piece: EdgePiece) -> Result:
        found, state = self.settings.message(x_src, x_dst, piece), None
        if self.settings.states:
            state, found = found if isinstance(found, tuple) else (found, found)
            if state.dim() != 2 or len(state) != len(x_src):
                raise InputError(
                    f"edge_update: give a row for each of these {len(x_src)} edges",
                    value=list(state.shape),
                )
        if isinstance(found, Tensor):
            return Result(found.reshape(len(x_src), -1), None, state)
        value, logit = found
        shape = logit.shape
        try:
            logit = logit.reshape(*shape, *[1] * (value.dim() - logit.dim())).expand_as(value)
        except RuntimeError:
            raise InputError(
                "message: the logits' shape doesn't fit the values', "
                f"{list(shape)} and {list(value.shape)}"
            ) from None
        return Result(value.reshape(len(x_src), -1), logit.reshape(len(x_src), -1), state)

    def _edges(self, block: Block, rows: Tensor, columns: Tensor, edges: Tensor) -> EdgePiece:
        states = self.settings.states
        features = None if block.features is None else block.features[edges]
        given = None
        if self.edges_ED is not None:
            given = self.edges_ED.detach()[edges + self.first_edge[block.peer]]
        return EdgePiece(
            weight=None if block.weight is None else block.weight[edges],
            relation=None if block.relation is None else block.relation[edges],
            features=features if given is None or states else given,
            state=given if states else None,
            kept=self._kept(block, rows, columns),
        )

    def _kept(self, block: Block, rows: Tensor, columns: Tensor) -> Tensor | None:
        """Return the dropout keyed by the ids of each edge's ends; see `EdgePiece`."""
        p, graph = self.settings.dropout, self.graph
        if not p:
            return None
        ids = graph.node_ids
        if block.peer != graph.in_edges.rank:
            ids = halo_ids(graph, graph.in_edges)[block.peer][block.column_offset :]
        ids_E = ids[columns] * _SOURCE + graph.node_ids[rows] * _TARGET
        kept_EH = self.x_NF.new_ones(len(rows), self.settings.heads)
        kernels.dropout_nodes(
            kept_EH,
            kept_EH,
            ids_E,
            p=p,
            seed=graph.seed,
            epoch=self.epoch,
            layer=self.settings.layer,
        )
        return kept_EH

    def _pieces(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (destination rows, edge positions), int64, of at most `piece` edges at a time."""
        counts = block.end - block.begin
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        for low in range(0, total, self.settings.piece):
            flat = torch.arange(low, min(low + self.settings.piece, total), device=ends.device)
            row = torch.searchsorted(ends, flat, right=True)
            edges = block.begin[row] + flat - (ends[row] - counts[row])
            yield (row if block.rows is None else block.rows[row].long()), edges

    def _random(self, block: Block, piece: int) -> _Seeded:
        """Return a context in which `message` draws equal random numbers forward and backward."""
        key = (self.graph.seed, self.epoch, self.settings.layer, self.graph.in_edges.rank)
        seed = hash((*key, block.peer, block.column_offset, piece)) & (2**63 - 1)
        return _Seeded(seed, self.x_NF.device)

    def _begin(self, result: Result) -> None:
        if not self.reductions:
            like_NG = result.value.new_empty(len(self.x_NF), result.value.shape[1])
            self.reductions = [reductions.make(name, like_NG) for name in self.settings.aggr]
        if self.state_ED is None and result.state is not None:
            self.state_ED = result.state.new_empty(self.num_edges, result.state.shape[1])

    def _probe(self) -> Result:
        """Return the message of one blank edge, from which a rank without edges gets the widths."""
        block = self.graph.in_edges.blocks[self.graph.in_edges.rank]
        none = torch.zeros(0, dtype=torch.int64, device=self.x_NF.device)
        like = self._edges(block, none, none, none)

        def blank(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows.new_ones(1, *rows.shape[1:])

        piece = EdgePiece(
            weight=blank(like.weight),
            relation=None if like.relation is None else none.new_zeros(1),
            features=blank(like.features),
            state=blank(like.state),
            kept=blank(like.kept),
        )
        with torch.no_grad():
            x_src, x_dst = (rows.new_zeros(1, rows.shape[1]) for rows in (self.x_NF, self.y_NG))
            return self._message(x_src, x_dst, piece)


class _Seeded:
    """A context in which torch's generators are seeded; their states are restored after it."""

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


def add_to_rows(target: Tensor, rows: Tensor, grad: Tensor | None) -> None:
    """Add `grad[e]` to `target[rows[e]]`; rows with more than `MANY` edges sum in float64."""
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
