"""Names, types and counts of the files of this package.

`graph.h5` (format `hpcgnn-graph`), N nodes, E stored edges:

    edges/indptr int64 [N+1]       in-neighbour lists: row i lists the sources of the edges into i
    edges/indices int32|int64 [E]
    edges/weight float32 [E], edges/relation int32 [E], edges/features float32 [E, D]   optional
    nodes/features float32|float16 [N, F], or a group with indptr, indices, data and attribute width
    nodes/typed_features/<t> float32 [N_t, F_t]   nodes of type t in ascending node order
    nodes/labels int64 [N] (-1 unknown), int8 [N, T] (0, 1, -1 unknown), or numbers to be
        predicted, float32 [N] or [N, W] (NaN unknown), with num_classes 0
    nodes/split int8 [N, S]        0 none, 1 train, 2 valid, 3 test
    nodes/type int32 [N], nodes/original_ids int64 [N]   optional
    nodes/arrays/<name> [N] or [N, W] of a type in `named.TYPES`; floats may be NaN (unknown)
    edges/labels [E] or [E, W] as nodes/labels, edges/split int8 [E]   optional; 0: message only

Version 1 knows no float labels, nodes/arrays, edges/labels and edges/split. A file says the oldest
version that knows all it holds; every version up to the newest is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

VERSION = 1
VERSION_OF_NAMED = 2
NEWEST_VERSION = 2
GRAPH = "hpcgnn-graph"
PARTITION = "hpcgnn-partition"
CHECKPOINT = "hpcgnn-checkpoint"
PREDICTIONS = "hpcgnn-predictions"
WEIGHTS = "weights"  # tensors by name, in formats of others
WHAT = {
    GRAPH: "graph",
    PARTITION: "partition",
    CHECKPOINT: "checkpoint",
    PREDICTIONS: "predictions file",
    WEIGHTS: "weights file",
}

CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 28
MAX_COUNT = 1 << 56
MAX_WIDTH = 1 << 31

TRAIN, VALID, TEST = 1, 2, 3


@dataclass(frozen=True)
class Counts:
    """What a graph holds; all zero where it holds none of a kind."""

    num_nodes: int
    num_edges: int
    num_features: int = 0
    num_classes: int = 0
    multilabel: int = 0
    num_splits: int = 0
    num_relations: int = 0
    num_types: int = 0
    edge_width: int = 0

    def attributes(self) -> dict[str, int]:
        return asdict(self)


COUNT_NAMES = tuple(field.name for field in fields(Counts))
COUNT_LIMITS = dict.fromkeys(COUNT_NAMES, MAX_WIDTH) | {
    "num_nodes": MAX_COUNT,
    "num_edges": MAX_COUNT,
    "multilabel": 1,
}


def exceeded(counts: Mapping[str, int]) -> str | None:
    """The name of the first count that no reader takes; None where all are within limits."""
    for name, limit in COUNT_LIMITS.items():
        if not 0 <= counts[name] <= limit:
            return name
    return None


def chunk_rows(tail: tuple[int, ...], dtype: np.dtype) -> int:
    """Rows in a chunk of about `CHUNK_BYTES`, at least one."""
    row_bytes = int(np.prod(tail, dtype=np.int64)) * dtype.itemsize
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def attribute_checksum(attributes: Mapping[str, int | str]) -> str:
    """Eight hex digits over all attributes but `checksum` itself."""
    kept = {name: value for name, value in attributes.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"
