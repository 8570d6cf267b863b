"""A small graph of papers and authors in the layout of ogbn-mag."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

COUNTS = {"paper": 40, "author": 12, "institution": 3, "field_of_study": 5}
TRIPLES = [
    ("paper", "cites", "paper"),
    ("author", "writes", "paper"),
    ("author", "affiliated_with", "institution"),
    ("paper", "has_topic", "field_of_study"),
]
CLASSES = 3


def pack(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def rows(values: np.ndarray) -> str:
    return "".join(",".join(map(str, np.atleast_1d(row).tolist())) + "\n" for row in values)


def content(seed: int = 0) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Return edges [2, E] by type, and learnable features, classes and split of the papers."""
    rng = np.random.default_rng(seed)
    edges = {
        (a, r, b): np.stack([rng.integers(0, COUNTS[a], 60), rng.integers(0, COUNTS[b], 60)])
        for a, r, b in TRIPLES
    }
    labels = rng.integers(0, CLASSES, COUNTS["paper"])
    features = np.eye(CLASSES)[labels] + 0.1 * rng.normal(size=(COUNTS["paper"], CLASSES))
    return edges, features.astype(np.float32), labels, rng.integers(1, 4, COUNTS["paper"])


def write_mag(root: Path) -> Path:
    edges, features, labels, split = content()
    raw, time = root / "raw", root / "split" / "time"
    names = ",".join(COUNTS)
    pack(raw / "num-node-dict.csv.gz", f"{names}\n{','.join(map(str, COUNTS.values()))}\n")
    pack(raw / "triplet-type-list.csv.gz", rows(np.array(TRIPLES)))
    only_paper = f"{names}\n{','.join(str(name == 'paper') for name in COUNTS)}\n"
    pack(raw / "nodetype-has-label.csv.gz", only_paper)
    pack(time / "nodetype-has-split.csv.gz", only_paper)
    for name, ends in edges.items():
        folder = raw / "relations" / "___".join(name)
        pack(folder / "edge.csv.gz", rows(ends.T))
        pack(folder / "num-edge-list.csv.gz", f"{ends.shape[1]}\n")
        pack(folder / "edge_reltype.csv.gz", "0\n" * ends.shape[1])
    pack(raw / "node-feat" / "paper" / "node-feat.csv.gz", rows(features))
    pack(raw / "node-feat" / "paper" / "node_year.csv.gz", "2015\n" * len(labels))
    pack(raw / "node-label" / "paper" / "node-label.csv.gz", rows(labels))
    for code, part in enumerate(("train", "valid", "test"), start=1):
        pack(time / "paper" / f"{part}.csv.gz", rows(np.flatnonzero(split == code)))
    return root


def write_folders(root: Path) -> Path:
    """Write the same graph as a folder per type, half of it as text."""
    edges, features, labels, split = content()
    for name, ends in edges.items():
        folder = root / "edges" / "___".join(name)
        folder.mkdir(parents=True)
        if name[1] == "cites":
            (folder / "edges.csv").write_text(rows(ends.T))
        else:
            np.save(folder / "edges.npy", ends)
    for name, count in COUNTS.items():
        folder = root / "nodes" / name
        folder.mkdir(parents=True)
        np.save(folder / "age.npy", np.arange(count))
        if name == "author":
            (folder / "num_nodes.csv").write_text(f"{count}\n")
    paper = root / "nodes" / "paper"
    np.save(paper / "features.npy", features)
    pack(paper / "labels.csv.gz", rows(labels))
    np.save(paper / "train.npy", np.flatnonzero(split == 1))
    (paper / "valid.csv").write_text(rows(np.flatnonzero(split == 2)))
    np.save(paper / "test.npy", split == 3)
    return root
