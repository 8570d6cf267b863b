"""Named arrays, float labels, labels and split of edges: from graph.h5 to the ranks."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch

from hpcgnn.cli.info import check, describe
from hpcgnn.cli.main import main
from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError
from hpcgnn.partition.pipeline import partition_graph
from hpcgnn.sar.messages import edge_features
from hpcgnn.storage import schema
from hpcgnn.storage.fingerprint import fingerprint, to_hex
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.load import load_partition
from hpcgnn.storage.read.partition_file import PartitionFile, check_whole
from hpcgnn.storage.schema import attribute_checksum
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.graph_writer import GraphWriter
from tests.graphs import Whole, random_graph

N, E = 23, 90
NAN = float("nan")


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return one array of each type."""
    wide = {t: (rng.normal(size=(N, 2)) * 50).astype(t) for t in schema.TYPES}
    wide["float64"][3, 1] = NAN
    return {f"a_{t}": values for t, values in wide.items()} | {"flat": np.arange(N) * 7}


def write(path, whole: Whole, cuts=(0, N), **columns):
    """Write the graph with the given ones of arrays, labels, edge_labels and edge_split."""
    counts = np.bincount(whole.target, minlength=N)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    with GraphWriter(path, num_nodes=N) as writer:
        for low, high in pairwise(cuts):
            edges = slice(indptr[low], indptr[high])
            extras = {
                name: columns[name][edges]
                for name in ("edge_labels", "edge_split")
                if name in columns
            }
            features = None if whole.edge_features is None else whole.edge_features[edges]
            writer.append_rows(
                counts[low:high], whole.source[edges], edge_features=features, **extras
            )
            if "labels" in columns:
                writer.append_labels(columns["labels"][low:high])
            for name, values in columns.get("arrays", {}).items():
                writer.append_array(name, values[low:high])
    return path


def everything(symmetric: bool) -> tuple[Whole, dict]:
    rng = np.random.default_rng(5)
    whole = random_graph(N, E, edge_width=1, symmetric=symmetric)
    edges = len(whole.source)
    whole.edge_features = np.arange(edges, dtype=np.float32)[:, None]  # distinguishes edges
    labels = rng.normal(size=(N, 3)).astype(np.float32)
    labels[4, 1] = NAN
    return whole, {
        "arrays": arrays(rng),
        "labels": labels,
        "edge_labels": rng.integers(-1, 5, edges),
        "edge_split": rng.integers(0, 4, edges).astype(np.int8),
    }


def test_columns_appended_in_any_pieces_are_read_back(tmp_path):
    whole, columns = everything(False)
    fingerprints = set()
    for k, cuts in enumerate([(0, N), (0, 0, 9, N)]):
        with GraphFile(write(tmp_path / f"{k}.h5", whole, cuts, **columns)) as graph:
            graph.verify()
            assert graph.num_classes == 0 and not graph.multilabel
            fingerprints.add(graph.fingerprint)
            nodes, slab = graph.read_nodes(0, N), graph.read_rows(0, N)
            assert nodes.labels.dtype == np.float32
            np.testing.assert_array_equal(nodes.labels, columns["labels"])
            for name, values in columns["arrays"].items():
                assert nodes.named[name].dtype == values.dtype
                np.testing.assert_array_equal(nodes.named[name], values)
            np.testing.assert_array_equal(slab.edge_labels, columns["edge_labels"])
            np.testing.assert_array_equal(slab.edge_split, columns["edge_split"])
            assert not graph.read_nodes(2, 5, ["labels"]).named
            assert graph.array_names == sorted(columns["arrays"])
    assert len(fingerprints) == 1


def test_a_file_has_the_oldest_version_that_supports_its_content(tmp_path):
    whole, columns = everything(False)
    ints = np.arange(N) % 3
    for version, kept in (
        (1, {"labels": ints}),
        (2, {"labels": ints.astype(np.float64)}),
        (2, {"arrays": {"x": ints}}),
        (2, {"edge_labels": columns["edge_labels"]}),
        (2, {"edge_split": columns["edge_split"]}),
    ):
        path = write(tmp_path / "g.h5", whole, **kept)
        content = describe(path)
        assert content["attributes"]["version"] == version, kept
        check(path, content)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"arrays": {"a/b": np.zeros(N)}}, "names of arrays"),
        ({"arrays": {"": np.zeros(N)}}, "names of arrays"),
        ({"arrays": {"x": np.zeros((N, 2, 2))}}, "must be [nodes] or [nodes, width]"),
        ({"arrays": {"x": np.zeros(N, complex)}}, "must be [nodes] or [nodes, width]"),
        ({"arrays": {"x": np.full(N, np.inf)}}, "row 0 has a value that is not finite"),
        ({"arrays": {"x": np.zeros(N - 1)}}, f"must have {N} rows (found {N - 1})"),
        ({"labels": np.full(N, -np.inf)}, "not finite"),
        ({"labels": np.full(N, 1e300)}, "not finite"),
        ({"edge_labels": np.full(E, -2)}, "must lie in -1"),
        ({"edge_labels": np.full((E, 2), 7)}, "must lie in -1 .. 1"),
        ({"edge_split": np.full(E, 4)}, "must lie in 0 .. 3"),
    ],
)
def test_invalid_columns_are_not_written(tmp_path, columns, words):
    with pytest.raises(InputError) as caught:
        write(tmp_path / "g.h5", random_graph(N, E), **columns)
    assert words in str(caught.value) and not list(tmp_path.iterdir())


def spoil(path, name: str, values: np.ndarray, **options) -> None:
    """Replace a dataset by another."""
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        options = {"chunks": values.shape, "fletcher32": True} | options
        file.create_dataset(name, data=values, **options)


HOSTILE = [
    ("nodes/arrays/flat", np.zeros(N - 1), f"must have shape {N} (found"),
    ("nodes/arrays/flat", np.zeros((N, 2, 2)), f"must have shape {N} (found"),
    ("nodes/arrays/flat", np.full(N, np.inf, np.float16), "row 0 has a value that is not finite"),
    ("nodes/arrays/flat", np.zeros(N, np.uint32), "must be of type float16 or"),
    ("nodes/arrays/flat", np.zeros(N, ">f4"), "must be of type float16 or"),
    ("nodes/arrays/..x", np.zeros(N), "names of arrays"),
    ("nodes/arrays/deep/x", np.zeros(N), "must be a dataset"),
    ("nodes/labels", np.zeros(N, np.int64), "must be of type float32"),
    ("nodes/labels", np.full(N, np.inf, np.float32), "not finite"),
    ("edges/labels", np.zeros(E - 1, np.int64), f"must have shape {E}"),
    ("edges/labels", np.full(E, -5), "entry 0 must lie in -1"),
    ("edges/labels", np.zeros(E, np.float64), "must be of type float32 or int64 or int8"),
    ("edges/labels", np.full((E, 2), 3, np.int8), "entry 0 must lie in -1 .. 1"),
    ("edges/split", np.full(E, 4, np.int8), "entry 0 must lie in 0 .. 3"),
    ("edges/split", np.zeros((E, 1), np.int8), f"must have shape {E}"),
]


@pytest.mark.parametrize(("name", "values", "words"), HOSTILE)
def test_an_invalid_graph_file_is_refused_in_one_line(tmp_path, name, values, words):
    path = write(tmp_path / "g.h5", *[everything(False)[0]], **everything(False)[1])
    spoil(path, name, values)
    with pytest.raises(InputError) as caught, GraphFile(path) as graph:
        graph.verify()
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


def test_the_fingerprint_covers_edge_labels_and_node_arrays(tmp_path):
    whole, columns = everything(False)
    path = write(tmp_path / "g.h5", whole, **columns)
    for name in ("nodes/arrays/flat", "nodes/labels", "edges/labels", "edges/split"):
        with h5py.File(path, "r+") as file:
            before = file[name][...]
            file[name][...] = 1 - (before == 1)
        with pytest.raises(InputError, match="fingerprint"), GraphFile(path) as graph:
            graph.verify()
        with h5py.File(path, "r+") as file:
            file[name][...] = before


PARTS = [
    ("parts/00000/in/labels", np.full(3, 5), "must have shape"),
    ("parts/00000/in/labels", np.zeros((3, 2, 2), np.int64), "must have shape"),
    ("parts/00001/in/split", None, "is missing, but has"),
    ("parts/00001/nodes/arrays/flat", None, "is missing, but has"),
    ("parts/00000/nodes/arrays/flat", np.zeros(2), "must have shape"),
    ("parts/00000/nodes/arrays/a b", np.zeros(2), "names of arrays"),
    ("parts/00000/nodes/labels", np.zeros(2, np.int64), "must be of type float32"),
]


@pytest.mark.parametrize(("name", "values", "words"), PARTS)
def test_an_invalid_partition_file_is_refused_in_one_line(parts, tmp_path, name, values, words):
    path = tmp_path / "p.h5"
    path.write_bytes(parts)
    if values is None:
        forget(path, name)
    else:
        spoil(path, name, values)
    with pytest.raises(InputError) as caught, PartitionFile(path) as file:
        check_whole(file)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> bytes:
    """A partition file of two parts with every kind of column."""
    folder = tmp_path_factory.mktemp("parts")
    whole, columns = everything(False)
    write(folder / "g.h5", whole, **columns)
    options = ["--parts", "2", "--method", "block", "--out", str(folder / "p.h5")]
    assert main(["partition", str(folder / "g.h5"), *options]) == 0
    return (folder / "p.h5").read_bytes()


def forget(path, name: str) -> None:
    """Remove a dataset from a part, with fingerprints of part and file that match the rest."""
    part = "/".join(name.split("/")[:2])
    with h5py.File(path, "r+") as file:
        gone = fingerprint(name, file[name][...])
        del file[name]
        left = int(file[part].attrs["fingerprint"], 16) - gone
        attributes = {key: plain(value) for key, value in file.attrs.items()}
        whole = int(str(attributes["fingerprint"]), 16) - gone
        attributes["fingerprint"] = to_hex(whole)
        attributes["checksum"] = attribute_checksum(attributes)
        for item, key, value in (
            (file[part], "fingerprint", to_hex(left)),
            (file, "fingerprint", attributes["fingerprint"]),
            (file, "checksum", attributes["checksum"]),
        ):
            del item.attrs[key]
            atomic.set_attribute(item, key, value)


def plain(value: object) -> int | str:
    return value.decode() if isinstance(value, bytes) else int(value)


@pytest.mark.mpi
@pytest.mark.parametrize("symmetric", [False, True])
def test_edge_labels_and_node_arrays_reach_the_owning_rank(comm, shared_path, symmetric):
    whole, columns = everything(symmetric)
    path, out = shared_path / "g.h5", shared_path / "p.h5"
    with agreed(comm, "write"):
        if comm.rank == 0:
            write(path, whole, **columns)
    partition_graph(comm, path, method="random", out=out)
    graph = load_partition(out, comm)
    rows = graph.node_ids
    for name, values in columns["arrays"].items():
        mine = graph.nodes[name]
        assert torch.equal(mine.nan_to_num(), torch.from_numpy(values)[rows].nan_to_num())
        assert mine.dtype == torch.from_numpy(values).dtype
    assert torch.equal(graph.labels.isnan(), torch.from_numpy(columns["labels"]).isnan()[rows])
    features = edge_features(graph)
    which = features[:, 0].long() if features is not None else torch.empty(0, dtype=torch.long)
    assert torch.equal(graph.edge_labels, torch.from_numpy(columns["edge_labels"])[which])
    assert torch.equal(graph.edge_split, torch.from_numpy(columns["edge_split"])[which])
    held = comm.allreduce(len(which), where="edges")
    assert held == len(whole.source)
    assert torch.equal(graph.to("cpu").nodes["flat"], graph.nodes["flat"])
