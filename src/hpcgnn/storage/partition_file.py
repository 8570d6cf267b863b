"""The partition file: what each rank needs, in its own order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.storage.graph_file import NodeData


@dataclass
class EdgeLists:
    """Edges into one part, a block per peer (see docs/formats for each dataset)."""

    edge_ptr: np.ndarray
    row_ptr: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    columns: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    features: np.ndarray | None
    recv_ptr: np.ndarray
    send_ptr: np.ndarray
    send_rows: np.ndarray


@dataclass
class Part:
    """One part of a partitioned graph."""

    index: int
    num_parts: int
    ids: np.ndarray
    original_ids: np.ndarray | None
    nodes: NodeData
    in_edges: EdgeLists
    out_edges: EdgeLists | None
