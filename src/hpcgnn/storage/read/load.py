"""Loading of one rank's `PartitionedGraph` from a partition file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed, require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.errors import InputError, counted
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.features import SparseRows
from hpcgnn.graph.kinds import KindNames
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.settings import check_path
from hpcgnn.storage.checks import Place
from hpcgnn.storage.read.partition_file import EdgeLists, Part, PartitionFile
from hpcgnn.storage.read.parts import Claims, check_ranks, check_together, new_key, part_name


def load_partition(
    path: str | Path,
    comm: Any = None,
    *,
    split: int = 0,
    ring: Ring | None = None,
    mode: str = "sar",
    device: str = "cpu",
) -> PartitionedGraph:
    """Return this rank's part of a partition file; collective.

    Args:
        path: a partition file with as many parts as `comm` has ranks.
        comm: a `Communicator`, an mpi4py communicator, or None for all ranks of the job.
        split: the index of the file's split from which the masks are made.
        ring: buffers and counters to use; by default a new `Ring`.
        mode: `sar`, `sa` or `oneshot`.
        device: the device of the part: `cpu`, `cuda`, or `auto` (GPUs if every rank has one). The
            ranks of a machine take its GPUs in turn. The messages of a new ring are then sent as in
            training: by CUDA-aware MPI if it passes a test, else through pinned memory.

    Raises:
        InputError: some rank has no GPU; the file is damaged, has another number of parts, or is
            not the same on all ranks; parts contradict each other.
    """
    check_path(path, "load_partition", "path")
    comm = comm if isinstance(comm, Communicator) else Communicator.of(comm)
    part: Part | None = None
    header: dict[str, Any] = {}
    claims: Claims | None = None
    key = comm.broadcast(new_key(), where="load partition")
    with agreed(comm, "load partition"), PartitionFile(path) as file:
        header = dict(file.header)
        check_ranks(file.num_parts, comm, path)
        if not 0 <= split < max(int(header.get("num_splits", 0)), 1):
            raise InputError(
                f"has {counted(header.get('num_splits', 0), 'split')}, none with this number",
                file=path,
                value=split,
            )
        part = file.read_part(comm.rank)
        claims = Claims(part, file.part_fingerprint(comm.rank), key)
    require_same(comm, {"split": split, "mode": mode, "device": device}, "settings", file=path)
    if part is None or claims is None:
        raise InputError("could not be read", file=path)
    check_together(comm, header, claims, Place(path, part_name(comm.rank)))
    if device == "cpu":
        return assemble(part, comm, header, path, split=split, ring=ring, mode=mode)
    chosen = pick_device(comm, device)
    ring = ring or Ring(comm, transport=choose_transport(comm, chosen))
    return assemble(part, comm, header, path, split=split, ring=ring, mode=mode).to(chosen)


def assemble(
    part: Part,
    comm: Communicator,
    header: dict[str, Any],
    path: str | Path | None = None,
    *,
    split: int = 0,
    ring: Ring | None = None,
    mode: str = "sar",
) -> PartitionedGraph:
    """Return a part as stored on disk as a graph of tensors; local, without messages."""
    in_edges = _edge_blocks(part.in_edges, part.index, len(part.ids))
    out_edges = in_edges
    if part.out_edges is not None:
        out_edges = _edge_blocks(part.out_edges, part.index, len(part.ids))
    nodes = part.nodes
    features: Tensor | SparseRows | None = None
    if isinstance(nodes.features, np.ndarray):
        features = _aligned(nodes.features)
    elif nodes.features is not None:
        rows = nodes.features
        features = sparse_rows(rows.indptr, rows.indices, rows.data, rows.width)
    masks: list[Tensor | None] = [None, None, None]
    if nodes.split is not None:
        chosen = torch.from_numpy(np.ascontiguousarray(nodes.split[:, split]))
        masks = [chosen == value for value in (1, 2, 3)]
    ids = torch.from_numpy(np.asarray(part.ids, dtype=np.int64))
    original = part.original_ids
    return PartitionedGraph(
        num_nodes=int(header["num_nodes"]),
        num_edges=int(header["num_edges"]),
        num_classes=int(header.get("num_classes", 0)),
        node_ids=ids,
        original_ids=ids if original is None else torch.from_numpy(np.asarray(original)),
        in_edges=in_edges,
        out_edges=out_edges,
        execution=Execution(ring or Ring(comm), mode=mode),
        features=features,
        typed_features={
            kind: _aligned(rows) for kind, rows in (nodes.typed_features or {}).items()
        },
        labels=None if nodes.labels is None else torch.from_numpy(np.asarray(nodes.labels)),
        train_mask=masks[0],
        valid_mask=masks[1],
        test_mask=masks[2],
        node_types=None if nodes.type is None else torch.from_numpy(np.asarray(nodes.type)),
        nodes={name: torch.from_numpy(values).clone() for name, values in nodes.named.items()},
        edge_labels=_tensor(part.in_edges.labels),
        edge_split=_tensor(part.in_edges.split),
        num_relations=int(header.get("num_relations", 0)),
        num_types=int(header.get("num_types", 0)),
        graph_fingerprint=str(header.get("graph_fingerprint", "")),
        kinds=KindNames.of(header.get("config", {})),
        file=None if path is None else Path(path).absolute(),
    )


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).clone()


def _aligned(rows: np.ndarray) -> Tensor:
    """Return float32 in torch's own memory, as its alignment affects the last bit of products."""
    return torch.from_numpy(np.asarray(rows, dtype=np.float32)).clone()


def sparse_rows(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, width: int
) -> SparseRows:
    """Return sparse features and their transpose as blocks for the sum kernel."""
    num_rows = len(indptr) - 1
    row_of = np.repeat(np.arange(num_rows, dtype=np.int32), np.diff(indptr))
    order = np.argsort(indices, kind="stable")
    column_ptr = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=width))])
    return SparseRows(
        shape=(num_rows, width),
        block=_csr(indptr, indices, data, width),
        transposed=_csr(column_ptr, row_of[order], data[order], num_rows),
    )


def _csr(indptr: np.ndarray, columns: np.ndarray, data: np.ndarray, num_columns: int) -> Block:
    pointer = torch.from_numpy(np.asarray(indptr, dtype=np.int64))
    return Block(
        peer=-1,
        num_columns=num_columns,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=torch.from_numpy(np.asarray(columns, dtype=np.int32)),
        weight=torch.from_numpy(np.asarray(data, dtype=np.float32)),
    )


def _edge_blocks(lists: EdgeLists, rank: int, num_local: int) -> EdgeBlocks:
    blocks, send_rows = [], []
    for peer in range(len(lists.edge_ptr) - 1):
        rows = slice(int(lists.row_ptr[peer]), int(lists.row_ptr[peer + 1]))
        edges = slice(int(lists.edge_ptr[peer]), int(lists.edge_ptr[peer + 1]))
        counts = lists.counts[rows].astype(np.int64)
        row_list: Tensor | None = torch.from_numpy(lists.rows[rows])
        if peer == rank:
            full = np.zeros(num_local, np.int64)
            full[lists.rows[rows]] = counts
            counts, row_list = full, None
        pointer = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        halo = int(lists.recv_ptr[peer + 1] - lists.recv_ptr[peer])
        blocks.append(
            Block(
                peer=peer,
                num_columns=num_local if peer == rank else halo,
                rows=row_list,
                begin=pointer[:-1],
                end=pointer[1:],
                columns=torch.from_numpy(lists.columns[edges]),
                weight=_per_edge(lists.weight, edges),
                relation=_per_edge(lists.relation, edges),
                features=_per_edge(lists.features, edges),
            )
        )
        sent = slice(int(lists.send_ptr[peer]), int(lists.send_ptr[peer + 1]))
        send_rows.append(torch.from_numpy(lists.send_rows[sent]))
    return EdgeBlocks(rank, blocks, send_rows)


def _per_edge(values: np.ndarray | None, edges: slice) -> Tensor | None:
    return None if values is None else torch.from_numpy(values[edges])
