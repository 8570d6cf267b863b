"""Named arrays, numbers as labels, and labels and a split of the edges, from arrays to graph.h5."""

from __future__ import annotations

import numpy as np
import pytest

N = 6
EDGES = np.array([[0, 1, 2, 2, 5], [1, 0, 3, 2, 4]])
LABELS = np.array([3, 3, -1, 0, 1])
SPLIT = np.array([1, 1, 2, 3, 0], np.int8)
POSITION = np.random.default_rng(0).normal(size=(N, 3))
VALUES = np.array([0.5, np.nan, 2, 3, 4, 5])


def by_ends(graph, values: np.ndarray) -> dict:
    ends = zip(graph.slab.indices.tolist(), graph.destinations.tolist(), strict=True)
    return dict(zip(ends, values.tolist(), strict=True))


def test_an_archive_may_hold_them(convert, tmp_path):
    np.savez(
        tmp_path / "g.npz",
        edge_index=EDGES,
        edge_label=LABELS,
        edge_split=SPLIT,
        array_position=POSITION,
        labels=VALUES,
    )
    graph = convert(tmp_path / "g.npz", "--labels-as", "values", "--self-loops", "add")
    assert graph.nodes.named["position"].dtype == np.float64
    np.testing.assert_array_equal(graph.nodes.named["position"], POSITION)
    np.testing.assert_array_equal(graph.nodes.labels, VALUES.astype(np.float32))
    loops = [(k, k) for k in range(N) if k != 2]
    ends = list(map(tuple, EDGES.T.tolist()))
    wanted = dict(zip(ends, LABELS.tolist(), strict=True)) | dict.fromkeys(loops, -1)
    assert by_ends(graph, graph.slab.edge_labels) == wanted
    wanted = dict(zip(ends, SPLIT.tolist(), strict=True)) | dict.fromkeys(loops, 0)
    assert by_ends(graph, graph.slab.edge_split) == wanted


def test_files_of_their_own_may_hold_them(convert, tmp_path):
    wide = np.arange(10.0).reshape(5, 2)
    for name, values in (("e", EDGES), ("l", wide), ("s", SPLIT), ("p", POSITION)):
        np.save(tmp_path / f"{name}.npy", values)
    options = [f"--edge-labels={tmp_path / 'l.npy'}", f"--edge-split={tmp_path / 's.npy'}"]
    graph = convert(tmp_path / "e.npy", *options, f"--node-array=pos={tmp_path / 'p.npy'}")
    np.testing.assert_array_equal(graph.nodes.named["pos"], POSITION)
    assert graph.slab.edge_labels.dtype == np.float32
    ends = list(map(tuple, EDGES.T.tolist()))
    assert by_ends(graph, graph.slab.edge_labels) == dict(zip(ends, wide.tolist(), strict=True))


def test_a_reverse_is_in_the_split_of_its_edge(convert, tmp_path):
    np.savez(tmp_path / "g.npz", edge_index=EDGES, edge_label=LABELS, edge_split=SPLIT)
    graph = convert(tmp_path / "g.npz", "--symmetrise", "--num-nodes", "6")
    found = by_ends(graph, graph.slab.edge_split)
    assert len(found) == 7 and all(found[b, a] == code for (a, b), code in found.items())


BAD = [
    ({"edge_label": LABELS[:-1]}, (), "same number of edges"),
    ({"edge_label": np.full(5, -3)}, (), "must lie in -1"),
    ({"edge_label": np.arange(5)}, ("--symmetrise",), "have different labels"),
    ({"edge_split": np.full(5, 9)}, (), "must be below 4"),
    ({"array_x": np.zeros(N + 1), "labels": VALUES}, (), "disagree on the number of nodes"),
    ({"array_x y": np.zeros(N)}, (), "names of arrays"),
    ({"array_x": np.full(N, np.inf)}, (), "not finite"),
    ({"labels": VALUES}, (), "--labels-as values"),
    ({"labels": np.full(N, np.inf)}, ("--labels-as", "values"), "not finite"),
    ({}, ("--node-array", "x"), "NAME=FILE.npy"),
    ({}, ("--edge-split", "{}/s.npy"), "goes with the format edges"),
]


@pytest.mark.parametrize(("arrays", "options", "words"), BAD)
def test_what_cannot_be_is_refused(refused, tmp_path, arrays, options, words):
    np.save(tmp_path / "s.npy", SPLIT)
    np.savez(tmp_path / "g.npz", edge_index=EDGES, **arrays)
    options = [option.format(tmp_path) for option in options]
    assert words in refused(tmp_path / "g.npz", *options)
