"""graph.h5: content is read back as written; anything wrong is refused in one line."""

from __future__ import annotations

import fcntl
import tracemalloc
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.nodes import CsrRows
from hpcgnn.storage.write import atomic
from tests.storage.files import graph_content


def read_all(path: Path) -> None:
    with GraphFile(path) as graph:
        graph.read_rows(0, graph.num_nodes)
        graph.read_nodes(0, graph.num_nodes)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
def test_slabs_add_up_to_the_written_graph(tmp_path, sparse, multilabel):
    content = graph_content(sparse=sparse, multilabel=multilabel)
    arrays = content.arrays
    with GraphFile(content.write(tmp_path / "g.h5")) as graph:
        assert graph.config == {"verb": "test"}
        for cuts in ([0, 9], [0, 1, 1, 5, 9], list(range(10))):
            slabs = [(graph.read_rows(a, b), graph.read_nodes(a, b)) for a, b in pairwise(cuts)]
            got = {
                "edges/indices": np.concatenate([s.indices for s, _ in slabs]),
                "edges/weight": np.concatenate([s.weight for s, _ in slabs]),
                "edges/relation": np.concatenate([s.relation for s, _ in slabs]),
                "edges/features": np.concatenate([s.edge_features for s, _ in slabs]),
                "nodes/labels": np.concatenate([n.labels for _, n in slabs]),
                "nodes/split": np.concatenate([n.split for _, n in slabs]),
                "nodes/type": np.concatenate([n.type for _, n in slabs]),
                "nodes/original_ids": np.concatenate([n.original_ids for _, n in slabs]),
            }
            for kind in (0, 1):
                rows = [n.typed_features[kind] for _, n in slabs]
                got[f"nodes/typed_features/{kind}"] = np.concatenate(rows)
            if not sparse:
                got["nodes/features"] = np.concatenate([n.features for _, n in slabs])
            for name, array in got.items():
                np.testing.assert_array_equal(array, arrays[name], name)
            starts = np.concatenate(
                [s.indptr[:-1] + arrays["edges/indptr"][s.lo] for s, _ in slabs]
            )
            np.testing.assert_array_equal(starts, arrays["edges/indptr"][:-1])
            if sparse:
                dense = np.concatenate([to_dense(n.features) for _, n in slabs])
                whole = CsrRows(
                    *(arrays[f"nodes/features/{k}"] for k in ("indptr", "indices", "data")), 6
                )
                np.testing.assert_array_equal(dense, to_dense(whole))


def to_dense(rows: CsrRows) -> np.ndarray:
    dense = np.zeros(rows.shape)
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    np.add.at(dense, (row_of, rows.indices), rows.data)
    return dense


def test_only_requested_columns_are_read(tmp_path):
    content = graph_content()
    content.arrays["nodes/features"][3, 1] = np.nan
    with GraphFile(content.write(tmp_path / "g.h5")) as graph:
        nodes = graph.read_nodes(2, 5, ["labels"])
        np.testing.assert_array_equal(nodes.labels, content.arrays["nodes/labels"][2:5])
        assert nodes.features is None and nodes.split is None and nodes.type is None
        graph.read_nodes(4, 9)
        with pytest.raises(InputError, match=r"nodes/features: row 3 .*not finite \(found nan\)"):
            graph.read_nodes(2, 5)


# Wrong values: dataset, index, value, text of the message
VALUES = [
    ("edges/indptr", 0, 1, "must start at 0"),
    ("edges/indptr", 9, 19, "must end at 20"),
    ("edges/indptr", 4, -3, "must not fall"),
    ("edges/indptr", 5, 1 << 60, "must not fall"),
    ("edges/indices", 7, 9, "entry 7 must lie in 0 .. 8 (found 9)"),
    ("edges/indices", 19, -1, "entry 19 must lie in 0 .. 8 (found -1)"),
    ("edges/weight", 3, np.inf, "row 3 has a value that is not finite"),
    ("edges/relation", 2, 3, "entry 2 must lie in 0 .. 2 (found 3)"),
    ("edges/features", (6, 1), np.nan, "row 6 has a value that is not finite"),
    ("nodes/features", (8, 5), -np.inf, "row 8 has a value that is not finite (found -inf)"),
    ("nodes/labels", 1, 4, "entry 1 must lie in -1 .. 3 (found 4)"),
    ("nodes/labels", 1, -2, "(found -2)"),
    ("nodes/split", (2, 1), 4, "entry 2 must lie in 0 .. 3 (found 4)"),
    ("nodes/type", 0, 2, "entry 0 must lie in 0 .. 1 (found 2)"),
    ("nodes/type", 0, 1, "a row for each node of type"),
    ("nodes/typed_features/1", (4, 0), np.nan, "row 4 has a value that is not finite"),
]


@pytest.mark.parametrize(("name", "index", "value", "words"), VALUES)
def test_a_wrong_value_is_named(tmp_path, name, index, value, words):
    content = graph_content()
    content.arrays[name][index] = value
    dataset = "nodes/typed_features" if "each node" in words else name
    refused(content.write(tmp_path / "g.h5"), f": {dataset}", words)


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        ("indptr", 1, 9, "must not fall"),
        ("indptr", 9, 6, "must end at 7 (found 6)"),
        ("indices", 3, 6, "entry 3 must lie in 0 .. 5 (found 6)"),
        ("data", 3, np.nan, "row 3 has a value that is not finite"),
    ],
)
def test_a_wrong_sparse_feature_is_named(tmp_path, name, index, value, words):
    content = graph_content(sparse=True)
    content.arrays[f"nodes/features/{name}"][index] = value
    refused(content.write(tmp_path / "g.h5"), f"nodes/features/{name}", words)


@pytest.mark.parametrize("name", sorted(graph_content().arrays))
def test_missing_datasets_and_wrong_shapes_and_types_are_refused(tmp_path, name):
    path = tmp_path / "g.h5"
    content = graph_content()
    array = content.arrays.pop(name)
    if name not in ("edges/weight", "nodes/original_ids") and "typed" not in name:
        refused(content.write(path), name, "is missing")
    content.arrays[name] = array[:-1]
    refused(content.write(path), name)
    content.arrays[name] = array[..., None]
    refused(content.write(path), name, "must have shape")
    content.arrays[name] = array.astype(np.float64 if array.dtype.kind == "f" else np.uint16)
    refused(content.write(path), name, "must be of type")
    if array.itemsize > 1:
        content.arrays[name] = array.astype(array.dtype.newbyteorder(">"))
        refused(content.write(path), name, "must be of type")
    del content.arrays[name]
    content.arrays[f"{name}/inner"] = array
    refused(content.write(path), name)


ATTRIBUTES = [
    ("format", "netcdf", "attribute format"),
    ("format", "hpcgnn-partition", "must be a file of format hpcgnn-graph"),
    ("version", 3, "format versions 1 to 2 (found 3)"),
    ("version", "1", "format versions 1 to 2"),
    ("num_nodes", 0, "at least one node"),
    ("num_nodes", -1, "num_nodes must be an integer"),
    ("num_nodes", 1 << 60, "num_nodes must be an integer"),
    ("num_nodes", 1 << 55, "edges/indptr: must have shape"),
    ("num_nodes", 10, "edges/indptr: must have shape 11"),
    ("num_nodes", "9", "num_nodes must be an integer"),
    ("num_edges", 21, "edges/indices: must have shape 21"),
    ("num_features", 5, "nodes/features: must have shape 9x5"),
    ("num_classes", 1 << 40, "num_classes must be an integer"),
    ("multilabel", 2, "multilabel must be an integer in 0 .. 1"),
    ("num_splits", 1, "nodes/split: must have shape 9x1"),
    ("num_types", 1, "typed_features: names must be types 0 .. 0 (found '1')"),
    ("edge_width", 1, "edges/features: must have shape 20x1"),
    ("fingerprint", 7, "fingerprint must be text"),
    ("config", "{", "config must be JSON"),
    ("config", "[" * 100_000, "config must be JSON"),
]


@pytest.mark.parametrize(("name", "value", "words"), ATTRIBUTES)
def test_a_wrong_attribute_is_named(tmp_path, name, value, words):
    content = graph_content()
    content.attributes[name] = value
    refused(content.write(tmp_path / "g.h5"), words)


@pytest.mark.parametrize("name", sorted(graph_content().attributes))
def test_missing_attributes_are_refused(tmp_path, name):
    content = graph_content()
    del content.attributes[name]
    refused(content.write(tmp_path / "g.h5"), name)


def test_attributes_are_covered_by_a_checksum(tmp_path):
    path = graph_content().write(tmp_path / "g.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["num_classes"] = np.int64(5)
    refused(path, "the attributes don't match their checksum")
    with h5py.File(path, "r+") as file:
        file.attrs["num_classes"] = np.zeros(4)
    refused(path, "their checksum")


@pytest.mark.parametrize("how", ["contiguous", "link", "virtual", "chunks left out"])
def test_storage_without_checksums_is_refused(tmp_path, how):
    path = graph_content().write(tmp_path / "g.h5")
    with h5py.File(path, "r+") as file:
        labels = file["nodes/labels"][...]
        del file["nodes/labels"]
        if how == "contiguous":
            file["nodes/labels"] = labels
        elif how == "link":
            file["nodes/labels"] = h5py.ExternalLink("other.h5", "labels")
        elif how == "virtual":
            layout = h5py.VirtualLayout((9,), np.int64)
            layout[:] = h5py.VirtualSource("other.h5", "labels", (9,))
            file.create_virtual_dataset("nodes/labels", layout)
        else:
            file.create_dataset("nodes/labels", (9,), np.int64, chunks=(3,), fletcher32=True)
            file["nodes/labels"][:3] = labels[:3]
    refused(path, "nodes/labels")


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "absent.h5", "no such file")
    refused(tmp_path, "is not a regular file")
    refused(tmp_path / ("long" * 100), "File name too long")
    text = tmp_path / "text.h5"
    text.write_text("hello" * 1000)
    refused(text, "is not an HDF5 file")
    text.write_bytes(b"")
    refused(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused(tmp_path / "other.h5", "attribute format is missing")


def test_false_giant_sizes_allocate_nothing(tmp_path):
    path = graph_content().write(tmp_path / "g.h5")
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        for name in ("edges/indptr", "nodes/labels"):
            del file[name]
            length = (1 << 40) + (name == "edges/indptr")
            file.create_dataset(name, (length,), np.int64, chunks=(1 << 20,), fletcher32=True)
        content = {**graph_content().attributes, "num_nodes": 1 << 40}
        for name in list(file.attrs):
            del file.attrs[name]
        atomic.OutputFile(file, path).set_attributes(content)
    refused(path, "edges/indptr: claims to have 1048577 chunks in a file of")


def test_ranges_outside_the_data_are_refused(tmp_path):
    with GraphFile(graph_content().write(tmp_path / "g.h5")) as graph:
        for low, high in ((-1, 3), (0, 10), (5, 4)):
            with pytest.raises(InputError, match="the range asked for"):
                graph.read_rows(low, high)
            with pytest.raises(InputError, match="the range asked for"):
                graph.read_nodes(low, high)


def test_fingerprints_of_slabs_add_up(tmp_path):
    for sparse in (False, True):
        content = graph_content(sparse=sparse)
        with GraphFile(content.write(tmp_path / "g.h5")) as graph:
            whole = graph.fingerprint_of(0, 9)
            parts = sum(graph.fingerprint_of(a, b) for a, b in ((0, 0), (0, 4), (4, 9), (9, 9)))
            assert (whole - parts) % 2**64 == 0
            content.attributes["fingerprint"] = f"{whole % 2**64:016x}"
        with GraphFile(content.write(tmp_path / "g.h5")) as graph:
            graph.verify()
        content.arrays["nodes/labels"][0] = 0 if content.arrays["nodes/labels"][0] else 1
        with (
            GraphFile(content.write(tmp_path / "g.h5")) as graph,
            pytest.raises(InputError, match="don't match the fingerprint"),
        ):
            graph.verify()


def test_a_reader_stays_open_while_the_file_is_replaced(tmp_path):
    path = graph_content(0).write(tmp_path / "g.h5")
    other = graph_content(1)
    with GraphFile(path) as graph:
        before = graph.read_rows(0, 9).indices
        other.write(path)
        np.testing.assert_array_equal(graph.read_rows(0, 9).indices, before)
    with GraphFile(path) as graph:
        np.testing.assert_array_equal(graph.read_rows(0, 9).indices, other.arrays["edges/indices"])


def test_files_locked_by_others_can_be_read(tmp_path):
    path = graph_content().write(tmp_path / "g.h5")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r")
        read_all(path)


def test_surplus_rows_of_typed_features_are_refused(tmp_path):
    """For any slabs in which they are read."""
    content = graph_content()
    longer = np.ones((6, 2), np.float32)
    content.arrays["nodes/typed_features/1"] = longer
    with GraphFile(content.write(tmp_path / "g.h5")) as graph:
        graph.read_nodes(0, 4)
        for low in (0, 4, 8):
            with pytest.raises(InputError, match="a row for each node of type 1"):
                graph.read_nodes(low, 9)


def test_a_false_number_of_types_allocates_nothing(tmp_path):
    content = graph_content()
    content.attributes["num_types"] = 1 << 31
    path = content.write(tmp_path / "g.h5")
    with GraphFile(path) as graph:
        tracemalloc.start()
        types = graph.read_nodes(3, 9, ["typed_features"]).typed_features
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
    for kind, first in ((0, 1), (1, 2)):
        stored = content.arrays[f"nodes/typed_features/{kind}"]
        np.testing.assert_array_equal(types[kind], stored[first:])


@pytest.mark.parametrize("name", ["00", "-1", "\u0661", "1" * 5000, "2"])  # \u0661: an Arabic 1
def test_a_type_has_one_name(tmp_path, name):
    content = graph_content()
    rows = content.arrays.pop("nodes/typed_features/0")
    content.arrays[f"nodes/typed_features/{name}"] = rows
    refused(content.write(tmp_path / "g.h5"), "names must be types 0 .. 1")
