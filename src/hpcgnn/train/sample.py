"""A graph of a few nodes with the kinds of data that a file has, for a rehearsal on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpcgnn.comm.ring import Ring
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.features import SparseRows
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.chunks import LONGEST
from hpcgnn.storage.read.graph_file import read_counts
from hpcgnn.storage.read.parts import part_name
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import LABEL_TYPES, PARTITION, TYPES
from hpcgnn.tasks.settings import LABELS, TaskSettings

_NODES = 16
_TYPED_WIDTH = 4  # mapped to the model's width by a product


@dataclass(frozen=True)
class Kinds:
    """What the nodes and edges of a graph have, as far as it decides which kernels a model uses.

    Attributes:
        features: `dense`, `sparse`, `typed` or `none`.
        width: number of features per node; 0 if only nodes of some types have any.
        outputs: number of outputs of a model of the task.
        weights: whether edges have weights; edge_width: features per edge.
    """

    features: str
    width: int
    outputs: int
    weights: bool
    edge_width: int
    relations: int


def kinds_of_file(path: Path, task: TaskSettings) -> Kinds:
    """Return what a graph or partition file holds, from its header and names.

    Raises:
        InputError: its header is damaged.
    """
    with Reader(path, None) as reader:
        counts, prefix, edges = read_counts(reader), "", "edges"
        if reader.text("format") == PARTITION:
            prefix, edges = f"{part_name(0)}/", "in"
        kind = "dense" if counts.num_features else "none"
        kind = "sparse" if reader.is_group(f"{prefix}nodes/features") else kind
        kind = "typed" if reader.is_group(f"{prefix}nodes/typed_features") else kind
        return Kinds(
            features=kind,
            width=counts.num_features,
            outputs=_outputs(reader, prefix, counts.num_classes, task),
            weights=reader.has(f"{prefix}{edges}/weight"),
            edge_width=counts.edge_width,
            relations=counts.num_relations,
        )


def _outputs(reader: Reader, prefix: str, num_classes: int, task: TaskSettings) -> int:
    """Return the number of outputs; a guess for classes in a named array, which are not counted."""
    if task.on_pairs:
        return task.pair_width
    if task.target != LABELS:
        return reader.rows(f"{prefix}nodes/arrays/{task.target}", TYPES, None).width
    if num_classes or not reader.has(f"{prefix}nodes/labels"):
        return max(num_classes, 1)
    return reader.rows(f"{prefix}nodes/labels", LABEL_TYPES, None).width


def sample(kinds: Kinds, ring: Ring) -> PartitionedGraph:
    """Return the same small graph for each rank of a `Mirror`, or for a single rank.

    Its edges come in all forms that kernels distinguish: into nodes with so many that these are
    divided, and from other ranks so that nodes' rows are sent to the first of two peers, and sums
    of them to the second. Few edges lead to the nodes trained on.
    """
    comm, draw = ring.comm, torch.Generator().manual_seed(0)
    blocks = [_local(kinds, draw)]
    if comm.size > 1:
        blocks.append(_from_peer(1, range(1, 5), 4, 4, kinds, draw))
        blocks.append(_from_peer(2, range(5, 7), 2 * (LONGEST + 8), 8, kinds, draw))
    sent = [blocks[-peer % comm.size].num_columns if peer else 0 for peer in range(comm.size)]
    send_rows = [torch.arange(count, dtype=torch.int32) for count in sent]
    edges = EdgeBlocks(comm.rank, blocks, send_rows)
    ids = torch.arange(_NODES)
    classes = max(kinds.outputs, 1)
    return PartitionedGraph(
        num_nodes=_NODES * comm.size,
        num_edges=sum(block.num_edges for block in edges.blocks),
        num_classes=classes,
        node_ids=ids,
        original_ids=ids,
        in_edges=edges,
        out_edges=edges,
        execution=Execution(ring),
        features=_features(kinds, draw),
        typed_features={0: torch.randn(_NODES, _TYPED_WIDTH, generator=draw)}
        if kinds.features == "typed"
        else {},
        labels=ids % classes,
        train_mask=(ids >= 1) & (ids < 5),
        valid_mask=ids >= 5,
        test_mask=ids < 0,
        node_types=torch.zeros(_NODES, dtype=torch.int64) if kinds.features == "typed" else None,
        num_relations=kinds.relations,
        num_types=int(kinds.features == "typed"),
    )


def _features(kinds: Kinds, draw: torch.Generator) -> Tensor | SparseRows | None:
    if kinds.features == "sparse":
        rows = _sparse([2] * _NODES, kinds.width, draw)
        columns = _sparse([1] * kinds.width, _NODES, draw)
        return SparseRows((_NODES, kinds.width), rows, columns)
    return torch.randn(_NODES, kinds.width, generator=draw) if kinds.width else None


def _sparse(counts: Sequence[int], num_columns: int, draw: torch.Generator) -> Block:
    """Return sparse rows with these numbers of entries."""
    count_R = torch.tensor(counts)
    end, number = count_R.cumsum(0), int(count_R.sum())
    return Block(
        peer=-1,
        num_columns=num_columns,
        rows=None,
        begin=end - count_R,
        end=end,
        columns=torch.randint(num_columns, (number,), generator=draw).to(torch.int32),
        weight=torch.rand(number, generator=draw),
    )


def _local(kinds: Kinds, draw: torch.Generator) -> Block:
    """Return the edges between local nodes: some into each, very many into the last one."""
    count_N = torch.full((_NODES,), _NODES)
    count_N[-1] = 2 * LONGEST  # self-loops are left out of some layers
    row = torch.repeat_interleave(torch.arange(_NODES), count_N)
    column = torch.randint(_NODES, row.shape, generator=draw)
    column = torch.sort(row * _NODES + column).values % _NODES
    return _block(0, None, count_N, column, _NODES, kinds, draw)


def _from_peer(
    peer: int, rows: range, number: int, halo: int, kinds: Kinds, draw: torch.Generator
) -> Block:
    """Return `number` edges from `halo` rows of a peer, evenly into these rows."""
    count_R = torch.full((len(rows),), number // len(rows))
    column = torch.arange(number) * halo // number
    return _block(peer, torch.tensor(rows, dtype=torch.int32), count_R, column, halo, kinds, draw)


def _block(
    peer: int,
    rows: Tensor | None,
    count_R: Tensor,
    column: Tensor,
    num_columns: int,
    kinds: Kinds,
    draw: torch.Generator,
) -> Block:
    end, number = count_R.cumsum(0), len(column)
    relation = torch.arange(number) % max(kinds.relations, 1)
    features = torch.randn(number, kinds.edge_width, generator=draw)
    return Block(
        peer=peer,
        num_columns=num_columns,
        rows=rows,
        begin=end - count_R,
        end=end,
        columns=column.to(torch.int32),
        weight=torch.rand(number, generator=draw) + 0.5 if kinds.weights else None,
        relation=relation.to(torch.int32) if kinds.relations else None,
        features=features if kinds.edge_width else None,
    )
