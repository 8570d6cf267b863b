"""Named node arrays, numeric labels, and labels and a split of edges, from arrays to graph.h5."""

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


def test_an_archive_can_hold_edge_labels_and_node_arrays(convert, tmp_path):
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


def test_separate_files_can_hold_edge_labels_and_node_arrays(convert, tmp_path):
    wide = np.arange(10.0).reshape(5, 2)
    for name, values in (("e", EDGES), ("l", wide), ("s", SPLIT), ("p", POSITION)):
        np.save(tmp_path / f"{name}.npy", values)
    options = [f"--edge-labels={tmp_path / 'l.npy'}", f"--edge-split={tmp_path / 's.npy'}"]
    graph = convert(tmp_path / "e.npy", *options, f"--node-array=pos={tmp_path / 'p.npy'}")
    np.testing.assert_array_equal(graph.nodes.named["pos"], POSITION)
    assert graph.slab.edge_labels.dtype == np.float32
    ends = list(map(tuple, EDGES.T.tolist()))
    assert by_ends(graph, graph.slab.edge_labels) == dict(zip(ends, wide.tolist(), strict=True))


@pytest.mark.parametrize("header", ["", "source,target\n"], ids=["text", "table"])
def test_edge_labels_and_node_arrays_can_accompany_text_and_tables(
    convert, refused, tmp_path, header
):
    rows = "".join(f"{a},{b}\n" for a, b in EDGES.T.tolist())
    (tmp_path / "e.csv").write_text(header + rows)
    for name, values in (("l", LABELS), ("s", SPLIT), ("few", LABELS[:4]), ("many", np.arange(7))):
        np.save(tmp_path / f"{name}.npy", values)
    options = [f"--edge-labels={tmp_path / 'l.npy'}", f"--edge-split={tmp_path / 's.npy'}"]
    graph = convert(tmp_path / "e.csv", *options)
    ends = list(map(tuple, EDGES.T.tolist()))
    assert by_ends(graph, graph.slab.edge_labels) == dict(zip(ends, LABELS.tolist(), strict=True))
    assert by_ends(graph, graph.slab.edge_split) == dict(zip(ends, SPLIT.tolist(), strict=True))
    for name, message in (("few", "fewer rows"), ("many", "more rows")):
        option = f"--edge-labels={tmp_path / name}.npy"
        assert f"has {message} than there are edges" in refused(tmp_path / "e.csv", option)


def test_a_split_by_shares_is_made_of_any_labels(convert, refused, tmp_path, capfd):
    labels = np.repeat([0, 1, -1], [20, 30, 10])
    mask = np.arange(60) < 5
    edges = np.stack([np.arange(60), np.roll(np.arange(60), 1)])
    np.savez(tmp_path / "g.npz", edge_index=edges, y=labels, train_mask=mask)
    graph = convert(tmp_path / "g.npz", "--split-ratio", "6,2,2", "--seed", "3")
    assert "ignored because of --split-ratio" in capfd.readouterr().err
    found = graph.nodes.split[:, 0]
    shares = [np.bincount(found[labels == kind], minlength=4).tolist() for kind in (0, 1, -1)]
    assert shares == [[0, 12, 4, 4], [0, 18, 6, 6], [10, 0, 0, 0]]
    rows = "".join(f"{a} {b}\n" for a, b in edges.T.tolist())
    (tmp_path / "e.txt").write_text(rows)
    np.save(tmp_path / "y.npy", np.where(labels < 0, np.nan, labels + 0.5))
    values = [f"--labels={tmp_path}/y.npy", "--labels-as", "values"]
    graph = convert(tmp_path / "e.txt", *values, "--split-ratio", "6,2,2")
    assert np.bincount(graph.nodes.split[:, 0]).tolist() == [10, 30, 10, 10]
    assert "has no labels" in refused(tmp_path / "e.txt", "--split-ratio", "6,2,2")


@pytest.mark.parametrize("option", [("--label", "y"), ("--missing", "zero"), ("--header",)])
def test_options_for_columns_are_refused_without_tables(refused, tmp_path, option):
    np.savez(tmp_path / "g.npz", edge_index=EDGES, y=np.arange(N))
    wanted = "--delimiter" if option == ("--header",) else option[0]
    assert f"{wanted} is for tables" in refused(tmp_path / "g.npz", *option)


def test_a_reverse_edge_is_in_the_split_of_its_edge(convert, tmp_path):
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
    ({}, ("--edge-split", "{}/s.npy"), "is for the format edges"),
]


@pytest.mark.parametrize(("arrays", "options", "words"), BAD)
def test_impossible_content_is_refused(refused, tmp_path, arrays, options, words):
    np.save(tmp_path / "s.npy", SPLIT)
    np.savez(tmp_path / "g.npz", edge_index=EDGES, **arrays)
    options = [option.format(tmp_path) for option in options]
    assert words in refused(tmp_path / "g.npz", *options)
