"""GraphWriter: appending in any pieces gives the same file; incomplete files get no name."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage import schema
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.graph_writer import GraphWriter
from tests.storage.files import graph_content


def write(path, content, cuts, **options):
    """Append the columns of `content` in chunks of the given sizes."""
    arrays = content.arrays
    indptr = arrays["edges/indptr"]
    sparse = "nodes/features" not in arrays
    with GraphWriter(path, num_nodes=9, config={"verb": "test"}, **options) as writer:
        for a, b in pairwise(cuts):
            edges = slice(indptr[a], indptr[b])
            names = ("indices", "weight", "relation", "features")
            writer.append_rows(
                np.diff(indptr[a : b + 1]), *(arrays[f"edges/{name}"][edges] for name in names)
            )
            writer.append_labels(arrays["nodes/labels"][a:b])
            writer.append_split(arrays["nodes/split"][a:b])
            writer.append_types(arrays["nodes/type"][a:b])
            writer.append_original_ids(arrays["nodes/original_ids"][a:b])
            if sparse:
                pointers = arrays["nodes/features/indptr"]
                some = slice(pointers[a], pointers[b])
                writer.append_sparse_features(
                    np.diff(pointers[a : b + 1]),
                    arrays["nodes/features/indices"][some],
                    arrays["nodes/features/data"][some],
                    6,
                )
            else:
                writer.append_features(arrays["nodes/features"][a:b])
        for kind in (0, 1):
            writer.append_typed_features(kind, arrays[f"nodes/typed_features/{kind}"])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_pieces_of_any_size_give_the_same_file(
    tmp_path, monkeypatch, compress, sparse, chunk_bytes
):
    monkeypatch.setattr(schema, "CHUNK_BYTES", chunk_bytes)
    content = graph_content(sparse=sparse)
    fingerprints = set()
    for number, cuts in enumerate(([0, 9], list(range(10)), [0, 0, 4, 4, 9])):
        path = tmp_path / f"{number}.h5"
        write(path, content, cuts, compress=compress, num_classes=4)
        with GraphFile(path) as graph:
            graph.verify()
            fingerprints.add(graph.fingerprint)
            counts = {name: content.attributes[name] for name in schema.COUNT_NAMES}
            assert graph.counts.attributes() == counts
            slab, nodes = graph.read_rows(0, 9), graph.read_nodes(0, 9)
            np.testing.assert_array_equal(slab.indices, content.arrays["edges/indices"])
            np.testing.assert_array_equal(slab.edge_features, content.arrays["edges/features"])
            for name, array in nodes.arrays().items():
                np.testing.assert_array_equal(array, content.arrays[name], name)
    assert len(fingerprints) == 1


def test_counts_are_deduced_or_given(tmp_path):
    path = tmp_path / "g.h5"
    for given, found in ((None, (3, 6, 2)), (9, (9, 9, 9))):
        options = {f"num_{kind}": given for kind in ("classes", "relations", "types")}
        with GraphWriter(path, num_nodes=2, **options) as writer:
            writer.append_rows([1, 0], [1], relation=[5])
            writer.append_labels([-1, 2])
            writer.append_types([1, 0])
        with GraphFile(path) as graph:
            assert (graph.num_classes, graph.num_relations, graph.num_types) == found
            assert (graph.num_edges, graph.num_features, graph.num_splits) == (1, 0, 0)


def test_half_precision_and_no_edges(tmp_path):
    with GraphWriter(tmp_path / "g.h5", num_nodes=2) as writer:
        writer.append_rows([0, 0], [])
        writer.append_features(np.array([[1.5], [2]], np.float16))
        writer.append_labels(np.array([[0, 1, -1], [1, 1, 1]]))
    with GraphFile(tmp_path / "g.h5") as graph:
        assert graph.read_nodes(0, 2).features.dtype == np.float16
        assert graph.read_nodes(0, 2).labels.dtype == np.int8
        assert graph.multilabel and graph.num_classes == 3 and graph.num_edges == 0
        assert graph.read_rows(0, 2).indices.shape == (0,)


def rows(writer):
    writer.append_rows([1, 0], [1])


FAULTS = [
    (lambda w: w.append_rows([1], [0]), "edges/indptr: must have 3 rows"),
    (
        lambda w: w.append_rows([1, 0], [2]),
        r"edges/indices: entry 0 must lie in 0 .. 1 \(found 2\)",
    ),
    (lambda w: w.append_rows([2, 0], [1]), "edges/indices: the counts add up to 2 edges"),
    (lambda w: w.append_rows([2, -1], [1]), "edges/indptr: entry 1 must lie in 0"),
    (lambda w: w.append_rows([1, 0], [0.5]), "edges/indices: must be integers"),
    (lambda w: w.append_rows([1, 0], [1], weight=[np.nan]), "edges/weight: row 0"),
    (lambda w: w.append_rows([1, 0], [1], weight=[1, 2]), "edges/weight: must have 1 rows"),
    (lambda w: w.append_rows([1, 0], [1], relation=[-1]), "edges/relation: entry 0"),
    (lambda w: (w.append_rows([1], [1], weight=[1]), w.append_rows([0], [])), "all edges or none"),
    (lambda w: (rows(w), w.append_features([[1.0], [np.inf]])), "nodes/features: row 1"),
    (lambda w: (rows(w), w.append_features([[1.0], [1e39]])), "nodes/features: row 1"),
    (lambda w: (rows(w), w.append_features([[1.0]])), "nodes/features: must have 2 rows"),
    (lambda w: (rows(w), w.append_features([1.0, 2.0])), "nodes/features: must be numbers"),
    (
        lambda w: (rows(w), w.append_features([[1.0]]), w.append_features([[1.0, 2.0]])),
        "nodes/features: rows must stay of shape",
    ),
    (lambda w: (rows(w), w.append_labels([0, -2])), r"nodes/labels: entry 1 .*\(found -2\)"),
    (lambda w: (rows(w), w.append_labels([0, 7])), r"nodes/labels: entry 1 .*\(found 7\)"),
    (lambda w: (rows(w), w.append_labels([[0, 2], [0, 1]])), "nodes/labels: entry 0"),
    (lambda w: (rows(w), w.append_split([4, 0])), "nodes/split: entry 0"),
    (lambda w: (rows(w), w.append_types([0, 1]), w.append_typed_features(2, [[1]])), "types|2"),
    (lambda w: (rows(w), w.append_sparse_features([1, 0], [3], [1], 3)), "features/indices: entry"),
    (
        lambda w: (
            rows(w),
            w.append_features([[1], [2]]),
            w.append_sparse_features([0], [], [], 3),
        ),
        "must be sparse for all nodes or none",
    ),
    (
        lambda w: (rows(w), w.append_sparse_features([0], [], [], 3), w.append_features([[1]])),
        "must be sparse for all nodes or none",
    ),
    (
        lambda w: (rows(w), w.append_typed_features(0, np.zeros((0, 2)))),
        "typed_features/0: there is no node of this type",
    ),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_invalid_input_is_refused_and_leaves_no_file(tmp_path, fault, words):
    path = tmp_path / "g.h5"
    path.write_text("a former file")
    with (
        pytest.raises(InputError, match=words) as caught,
        GraphWriter(path, num_nodes=2, num_classes=7, source="source.txt") as writer,
    ):
        fault(writer)
    assert str(caught.value).startswith("source.txt: ") and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["g.h5"]
    assert path.read_text() == "a former file"


def test_unreadable_content_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "g.h5"
    for name, number in (
        ("num_nodes", (1 << 56) + 1),
        ("num_classes", 1 << 40),
        ("num_relations", (1 << 31) + 1),
        ("num_types", -1),
    ):
        with pytest.raises(InputError, match=rf"{name}: .*\(found {number}\)"):
            GraphWriter(path, **({"num_nodes": 2} | {name: number}))
    monkeypatch.setitem(schema.COUNT_LIMITS, "num_features", 3)
    with (
        pytest.raises(InputError, match="num_features: must lie in"),
        GraphWriter(path, num_nodes=2) as writer,
    ):
        rows(writer)
        writer.append_features(np.zeros((2, 4)))
    monkeypatch.setattr(atomic, "MAX_CHUNK_BYTES", 8)
    with (
        pytest.raises(InputError, match="nodes/features: has rows above"),
        GraphWriter(path, num_nodes=2) as writer,
    ):
        rows(writer)
        writer.append_features(np.zeros((2, 3)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunk_bytes", [8, 1 << 20])
@pytest.mark.parametrize("given", [None, 0])
def test_unknown_labels_only_count_as_no_labels(tmp_path, monkeypatch, chunk_bytes, given):
    monkeypatch.setattr(schema, "CHUNK_BYTES", chunk_bytes)
    with GraphWriter(tmp_path / "g.h5", num_nodes=4, num_classes=given) as writer:
        writer.append_rows([1, 0, 0, 0], [1])
        writer.append_labels([-1, -1, -1])
        writer.append_labels([-1])
    with GraphFile(tmp_path / "g.h5") as graph:
        graph.verify()
        assert graph.num_classes == 0 and graph.read_nodes(0, 4).labels is None


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
def test_integers_of_any_width_are_stored_in_the_same_way(tmp_path, kind):
    with GraphWriter(tmp_path / "g.h5", num_nodes=3) as writer:
        writer.append_rows(np.array([1, 0, 1], kind), np.array([2, 0], kind))
        writer.append_original_ids(np.array([7, 8, 9], kind))
    with h5py.File(tmp_path / "g.h5") as file:
        found = {name: file[name].dtype.name for name in ("edges/indptr", "edges/indices")}
        assert found == {"edges/indptr": "int64", "edges/indices": "int32"}
        assert file["nodes/original_ids"].dtype == np.int64
        assert file["edges/indices"][:].tolist() == [2, 0]
