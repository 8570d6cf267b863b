"""Graphs in .npz archives, synthetic and real."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from hpcgnn import from_scipy
from hpcgnn.errors import InputError

N = 9
MATRIX = sp.random_array((N, N), density=0.3, format="csr", rng=np.random.default_rng(4))
FEATURES = sp.random_array((N, 5), density=0.4, format="csr", rng=np.random.default_rng(5))
LABELS = np.array([0, 2, -1, 1, 0, 0, 2, 2, 1])
BASE = {"indptr": MATRIX.indptr.astype(np.int64), "indices": MATRIX.indices}
SPARSE = {
    "feature_indptr": FEATURES.indptr,
    "feature_indices": FEATURES.indices,
    "feature_data": FEATURES.data.astype(np.float32),
    "feature_shape": np.array([N, 5]),
}


def save(path: Path, compressed: bool = False, **arrays: object) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def codes(splits: list[tuple[list[int], list[int], list[int]]]) -> np.ndarray:
    out = np.zeros((N, len(splits)), int)
    for k, sets in enumerate(splits):
        for code, members in enumerate(sets, start=1):
            out[members, k] = code
    return out


@pytest.mark.parametrize("compressed", [False, True])
def test_all_arrays_of_an_archive(convert, tmp_path, compressed):
    dense = FEATURES.toarray().astype(np.float32)
    arrays = BASE | {"weight": MATRIX.data, "features": dense, "labels": LABELS}
    arrays |= {"train": np.array([0, 3]), "valid": np.array([8]), "test": np.array([], int)}
    options = ["--compress"] if compressed else []
    graph = convert(save(tmp_path / "g.npz", compressed, **arrays), *options)
    assert (graph.matrix == MATRIX.toarray().astype(np.float32)).all()
    assert (graph.nodes.features == dense).all() and graph.nodes.features.dtype == np.float32
    assert (graph.nodes.labels == LABELS).all() and graph.counts.num_classes == 3
    assert (graph.nodes.split == codes([([0, 3], [8], [])])).all()
    assert graph.nodes.original_ids is None


@pytest.mark.parametrize("turned", [False, True])
def test_masks_and_sparse_features(convert, tmp_path, turned):
    train, valid, test = np.zeros((3, 2, N), bool)
    train[0, :4] = train[1, 5:] = valid[0, 4] = valid[1, 0] = test[0, 6] = True
    masks = {"train_masks": train, "val_masks": valid, "test_masks": test}
    if turned:
        masks = {name: mask.T for name, mask in masks.items()}
    graph = convert(save(tmp_path / "g.npz", **BASE, **SPARSE, **masks))
    truth = codes([([0, 1, 2, 3], [4], [6]), ([5, 6, 7, 8], [0], [])])
    assert (graph.nodes.split == truth).all()
    assert (graph.dense_features == FEATURES.toarray().astype(np.float32)).all()
    assert graph.nodes.features.width == 5


def test_pairs_with_edge_features_types_and_several_labels(convert, tmp_path):
    pairs = np.array([[0, 8, 8, 3], [1, 2, 2, 3]])
    extra = np.arange(8.0).reshape(4, 2)
    labels = np.array([[0, 1, np.nan]] * N)
    kinds = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0])
    graph = convert(
        save(
            tmp_path / "g.npz",
            edge_index=pairs,
            edge_features=extra,
            labels=labels,
            node_type=kinds,
            typed_features_0=np.full((7, 2), 2.0),
            typed_features_1=np.full((2, 3), 3.0),
            original_ids=np.arange(N) * 10,
        )
    )
    assert graph.edges == sorted(zip(*pairs.tolist(), strict=True))
    rows = {(s, d): [] for s, d in graph.edges}
    for s, d, row in zip(
        graph.slab.indices, graph.destinations, graph.slab.edge_features, strict=True
    ):
        rows[s, d].append(row.tolist())
    assert rows == {(0, 1): [[0, 1]], (3, 3): [[6, 7]], (8, 2): [[2, 3], [4, 5]]}
    assert (graph.nodes.labels == np.array([[0, 1, -1]] * N)).all() and graph.counts.multilabel
    assert (graph.nodes.type == kinds).all()
    assert graph.nodes.typed_features[1].tolist() == [[3] * 3] * 2
    assert (graph.nodes.original_ids == np.arange(N) * 10).all()


@pytest.mark.parametrize("wide", [False, True])
def test_pyg_s_names_of_edge_columns_with_or_without_a_second_dimension(convert, tmp_path, wide):
    pairs, weight, kinds = np.array([[0, 1], [1, 2]]), np.array([0.5, 2]), np.array([1, 0])
    form = (2, 1) if wide else (2,)
    columns = {"edge_weight": weight.reshape(form), "edge_attr": 3 * weight.reshape(form)}
    graph = convert(save(tmp_path / "g.npz", edge_index=pairs, edge_type=kinds, **columns))
    assert graph.slab.weight.tolist() == [0.5, 2] and graph.slab.relation.tolist() == [1, 0]
    assert graph.slab.edge_features.tolist() == [[1.5], [6]] and graph.counts.num_relations == 2


def test_false_entries_of_a_boolean_matrix_are_no_edges(refused, tmp_path):
    matrix = sp.csr_array(([True, False], ([0, 1], [1, 2])), shape=(3, 3))
    sp.save_npz(tmp_path / "g.npz", matrix)
    assert "data: stores entries that are False" in refused(tmp_path / "g.npz")
    with pytest.raises(InputError, match="stores entries that are False"):
        from_scipy(matrix, tmp_path / "g.h5")


def test_empty_columns(convert, tmp_path):
    """No edges, and labels of which none or only the last is known."""
    arrays = {"indptr": np.zeros(N + 1, int), "indices": np.zeros(0, int), "weight": np.zeros(0)}
    graph = convert(save(tmp_path / "g.npz", **arrays, labels=np.full(N, -1), train=np.zeros(0)))
    assert graph.counts.num_edges == 0 and graph.counts.num_nodes == N
    assert graph.nodes.labels is None and not graph.nodes.split.any()
    labels = np.full(700_000, -1)
    labels[-1] = 3
    arrays["indptr"] = np.zeros(700_001, int)
    graph = convert(save(tmp_path / "g.npz", **arrays, labels=labels))
    assert (graph.nodes.labels == labels).all() and graph.counts.num_classes == 4


@pytest.mark.slow
def test_streams_agree_with_loading(convert, tmp_path):
    """More edges and entries than one chunk holds, with a row that fills several chunks."""
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3, 700_000)
    counts[[0, 5, 699_999]] = 900_000, 0, 40_000
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = rng.integers(0, 700_000, indptr[-1])
    entries = np.minimum(counts, 50)
    pointers = np.concatenate([[0], np.cumsum(entries)])
    graph = convert(
        save(
            tmp_path / "g.npz",
            indptr=indptr,
            indices=indices.astype(np.int32),
            feature_indptr=pointers,
            feature_indices=np.arange(pointers[-1]) % 50,
            feature_data=rng.random(pointers[-1]),
            feature_shape=np.array([700_000, 50]),
        )
    )
    rows = np.repeat(np.arange(700_000), counts)
    order = np.lexsort((rows, indices))
    assert (graph.destinations == indices[order]).all()
    assert (graph.slab.indices == rows[order]).all()
    assert (graph.nodes.features.indptr == pointers).all()
    assert (graph.nodes.features.indices == np.arange(pointers[-1]) % 50).all()


REAL = {
    "amazon_computers": (13_752, 491_722, 767, 10, 1),
    "coauthor_physics": (34_493, 495_924, 8_415, 5, 1),
    "minesweeper": (10_000, 78_804, 7, 2, 10),
    "arxiv_structure": (169_343, 2_315_598, 0, 40, 1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_graphs(convert, data, name):
    graph = convert(data / f"{name}.npz")
    counts = graph.counts
    found = (counts.num_nodes, counts.num_edges, counts.num_features, counts.num_classes)
    assert (*found, counts.num_splits) == REAL[name]
    source = np.load(data / f"{name}.npz", allow_pickle=False)
    ones = np.ones(source["indices"].shape[0])
    matrix = sp.csr_array((ones, source["indices"], source["indptr"])).tocsc()
    matrix.sort_indices()
    assert (graph.slab.indptr == matrix.indptr).all()
    assert (graph.slab.indices == matrix.indices).all()
    assert (graph.nodes.labels == source["labels"]).all()
    for code, part in enumerate(("train", "valid", "test"), start=1):
        members = source[part]
        if members.dtype == bool:
            assert ((graph.nodes.split == code) == members.T).all()
        else:
            assert np.flatnonzero(graph.nodes.split[:, 0] == code).tolist() == sorted(members)
    if "features" in source:
        assert (graph.nodes.features == source["features"]).all()
    elif counts.num_features:
        for part in ("indptr", "indices", "data"):
            assert (getattr(graph.nodes.features, part) == source[f"feature_{part}"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": np.arange(10)[::-1]}, "indptr: row pointers must start at 0 (found 9)"),
        ({"indptr": [0, 3, 2, *[len(MATRIX.indices)] * 7]}, "row pointers decrease after row 1"),
        ({"indptr": [*[0] * 9, 5]}, f"end at the number of entries, {len(MATRIX.indices)}"),
        ({"indptr": [*[0] * 9, 500]}, "row pointers exceed"),
        ({"indptr": np.zeros((2, 5), int)}, "indptr: must have 1 dimensions"),
        ({"indices": np.full(len(MATRIX.indices), N)}, "edge 0: destination must be below 9"),
        ({"indices": np.full(len(MATRIX.indices), -1)}, "must not be negative (found -1)"),
        ({"weight": np.full(len(MATRIX.indices), np.nan)}, "weight must be a finite float32"),
        ({"weight": np.ones(3)}, "same number of edges"),
        ({"features": np.zeros((N + 1, 2))}, "disagree on the number of nodes"),
        ({"features": np.zeros((N, 0))}, "features must be numbers of shape [nodes, width]"),
        ({"features": np.full((N, 2), np.inf)}, "row 0, column 0 is not a finite float32"),
        ({"features": np.full((N, 2), 1e39)}, "row 0, column 0 is not a finite float32"),
        ({"features": np.zeros((N, 2), "S3")}, "must hold numbers"),
        ({"labels": np.full(N, -2)}, "labels (-1: unknown) lie in -1"),
        ({"labels": np.full(N, 10**12)}, "labels (-1: unknown) lie in"),
        (
            {"labels": np.full(N, 0.5)},
            "must hold integers; use --labels-as values",
        ),
        ({"labels": np.full((N, 2), 2)}, "lie in -1 .. 1 (found 2)"),
        ({"labels": np.zeros(N - 1, int)}, "disagree on the number of nodes"),
        ({"labels": np.array([{}] * N)}, "labels: holds Python objects"),
        ({"train": np.array([0, N])}, "train: node indices lie in 0 .. 8 (found 9)"),
        ({"train": np.array([-1])}, "train: node indices lie in 0 .. 8 (found -1)"),
        ({"train": np.array([1, 2]), "test": np.array([2])}, "test: node is in two sets"),
        ({"train": np.ones(4, bool)}, "train: masks must have shape [9]"),
        ({"train": np.array([0.5])}, "train: must be masks or one list"),
        ({"train": np.ones((3, N), bool), "test": np.zeros((2, N), bool)}, "another set has 3"),
        ({"num_nodes": np.array(7)}, "the number of nodes: indptr 9, num_nodes 7"),
        ({"num_nodes": np.array([7, 7])}, "num_nodes: must be one integer"),
        (SPARSE | {"feature_indices": FEATURES.indices + 1}, "columns are 0 .. 4 (found 5)"),
        (SPARSE | {"feature_shape": np.array([N, -5])}, "does not fit feature_indptr"),
        (SPARSE | {"feature_shape": np.array([N - 1, 5])}, "does not fit feature_indptr"),
        (SPARSE | {"feature_shape": np.array([5])}, "must be two integers"),
        (SPARSE | {"feature_data": np.ones(2, np.float32)}, "must have the shape of feature_data"),
        (SPARSE | {"feature_data": FEATURES.data * np.nan}, "is not a finite float32"),
        (
            SPARSE | {"feature_shape": np.array([N, 1])},
            "has more than 1 entries",
        ),
    ],
)
def test_bad_arrays_are_refused(refused, tmp_path, change, message):
    found = refused(save(tmp_path / "g.npz", **(BASE | change)))
    assert message in found and "g.npz" in found


def test_false_sizes_allocate_nothing(refused, tmp_path):
    path = save(tmp_path / "g.npz", edge_index=np.array([[0], [1]]), num_nodes=np.array(10**15))
    assert "announces 1000000000000000 nodes but has 1 edges" in refused(path)
    assert "which is plausible for at most 100006400 nodes" in refused(path, "--num-nodes", 10**15)


def test_missing_and_repeated_arrays_are_refused(refused, tmp_path):
    assert "has no edges" in refused(save(tmp_path / "a.npz", labels=LABELS))
    path = save(tmp_path / "g.npz", **BASE)
    member = io.BytesIO()
    np.save(member, BASE["indices"])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("indices.npy", member.getvalue())
    assert "two arrays of the same name" in refused(path)


def test_a_matrix_without_a_format_is_refused(convert, refused, tmp_path):
    by_column = MATRIX.tocsc()
    arrays = {name: getattr(by_column, name) for name in ("indptr", "indices", "data")}
    path = save(tmp_path / "g.npz", **arrays, shape=np.array([N, N]))
    assert "without a format, which would say whether indptr is over rows" in refused(path)
    graph = convert(path, "--leave-out", "data")
    assert (graph.matrix == (MATRIX.toarray() != 0).T).all()


def test_damaged_archives_are_refused(refused, tmp_path):
    path = save(tmp_path / "g.npz", **BASE, labels=LABELS)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert "g.npz" in refused(path)
    at = whole.index(BASE["indices"].tobytes())
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    assert "truncated or damaged" in refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_size_bound_is_refused(refused, tmp_path, monkeypatch, method):
    path = tmp_path / "g.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("edge_index.npy", b"\0" * (1 << 20))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", None)
    message = refused(path)
    assert (
        "edge_index.npy: is compressed with a method" in message and f"method {method}" in message
    )


@pytest.mark.slow
def test_a_small_archive_of_a_huge_array_is_refused(tmp_path):
    """In a process of its own, whose memory is that of its libraries."""
    path = save(tmp_path / "g.npz", True, **BASE, train=np.zeros((N, 30 << 20), bool))
    assert path.stat().st_size < 1 << 20
    command = [sys.executable, "-m", "hpcgnn.cli.main", "convert", path, tmp_path / "out.h5"]
    done = subprocess.run([*command, "--memory", "256MiB"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "raise --memory" in done.stderr
