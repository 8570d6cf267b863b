"""A small graph file with every kind of column, so that each can be corrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.storage.write import atomic


@dataclass
class Content:
    """The content of an HDF5 file, before it is corrupted."""

    arrays: dict[str, np.ndarray]
    attributes: dict[str, int | str]
    groups: dict[str, dict[str, int | str]]

    def write(self, path: Path) -> Path:
        with atomic.create(path) as output:
            for name, array in self.arrays.items():
                output.dataset(name, array.dtype, array.shape)[...] = array
            for group, attributes in self.groups.items():
                for name, value in attributes.items():
                    atomic.set_attribute(output.h5[group], name, value)
            output.set_attributes(self.attributes)
        return path


def graph_content(seed: int = 0, *, sparse: bool = False, multilabel: bool = False) -> Content:
    """Return a graph of 9 nodes and 20 edges; node 0 has no in-edges."""
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.integers(1, 9, 20))
    types = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1], np.int32)
    arrays = {
        "edges/indptr": np.searchsorted(targets, np.arange(10)).astype(np.int64),
        "edges/indices": rng.integers(0, 9, 20).astype(np.int32),
        "edges/weight": rng.uniform(1, 2, 20).astype(np.float32),
        "edges/relation": rng.integers(0, 3, 20).astype(np.int32),
        "edges/features": rng.normal(size=(20, 2)).astype(np.float32),
        "nodes/labels": rng.integers(-1, 4, 9),
        "nodes/split": rng.integers(0, 4, (9, 2)).astype(np.int8),
        "nodes/type": types,
        "nodes/typed_features/0": rng.normal(size=(4, 3)).astype(np.float32),
        "nodes/typed_features/1": rng.normal(size=(5, 2)).astype(np.float32),
        "nodes/original_ids": rng.permutation(9) * 1000,
    }
    if multilabel:
        arrays["nodes/labels"] = rng.integers(-1, 2, (9, 4)).astype(np.int8)
    groups: dict[str, dict[str, int | str]] = {}
    if sparse:
        arrays["nodes/features/indptr"] = np.array([0, 2, 2, 3, 3, 3, 5, 6, 6, 7])
        arrays["nodes/features/indices"] = rng.integers(0, 6, 7).astype(np.int32)
        arrays["nodes/features/data"] = rng.normal(size=7).astype(np.float32)
        groups["nodes/features"] = {"width": 6}
    else:
        arrays["nodes/features"] = rng.normal(size=(9, 6)).astype(np.float32)
    attributes: dict[str, int | str] = {
        "format": "hpcgnn-graph",
        "version": 1,
        "num_nodes": 9,
        "num_edges": 20,
        "num_features": 6,
        "num_classes": 4,
        "multilabel": int(multilabel),
        "num_splits": 2,
        "num_relations": 3,
        "num_types": 2,
        "edge_width": 2,
        "fingerprint": "0" * 16,
        "config": json.dumps({"verb": "test"}),
    }
    return Content(arrays, attributes, groups)
