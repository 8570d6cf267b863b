"""Graphs of several types: OGB's layout of ogbn-mag, and a folder for each type."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import hpcgnn
from hpcgnn.cli import convert as convert_verb
from hpcgnn.cli import partition, predict, train
from hpcgnn.cli.main import main
from hpcgnn.comm.agreement import agreed
from hpcgnn.graph.kinds import KindNames
from hpcgnn.partition.load import load_partition
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.train.predict import read_checkpoint
from hpcgnn.train.weights import export
from tests.cli.verbs import call
from tests.late import Late
from tests.storage.importers.typed import (
    CLASSES,
    COUNTS,
    TRIPLES,
    content,
    write_folders,
    write_mag,
)

pyg = Late("torch_geometric.nn")

WRITERS = {"mag": write_mag, "folders": write_folders}


@pytest.mark.parametrize("layout", WRITERS)
def test_types_become_node_types_and_relations(convert, tmp_path, layout, capfd):
    edges, features, labels, split = content()
    graph = convert(WRITERS[layout](tmp_path / "g"))
    kinds = sorted(COUNTS)
    firsts = dict(zip(kinds, np.cumsum([0] + [COUNTS[k] for k in kinds]).tolist(), strict=False))
    assert graph.nodes.type.tolist() == [t for t, k in enumerate(kinds) for _ in range(COUNTS[k])]
    papers = slice(firsts["paper"], firsts["paper"] + COUNTS["paper"])
    np.testing.assert_array_equal(graph.nodes.labels[papers], labels)
    assert (np.delete(graph.nodes.labels, papers) == -1).all()
    np.testing.assert_array_equal(graph.nodes.split[papers, 0], split)
    assert not np.delete(graph.nodes.split, papers).any()
    assert list(graph.nodes.typed_features) == [kinds.index("paper")]
    np.testing.assert_allclose(graph.nodes.typed_features[kinds.index("paper")], features)
    assert graph.counts.num_relations == len(TRIPLES)
    for number, name in enumerate(sorted(TRIPLES)):
        mine = graph.slab.relation == number
        ends = np.stack([graph.slab.indices, graph.destinations])[:, mine]
        wanted = edges[name] + np.array([[firsts[name[0]]], [firsts[name[2]]]])
        assert sorted(map(tuple, ends.T.tolist())) == sorted(map(tuple, wanted.T.tolist()))
    if layout == "mag":
        assert "edge_reltype.csv.gz, node_year.csv.gz" in capfd.readouterr().err
    else:
        assert len(graph.nodes.named["age"]) == sum(COUNTS.values())


def test_a_round_trip_keeps_type_names(tmp_path):
    assert main(["convert", str(write_mag(tmp_path / "g")), str(tmp_path / "g.h5")]) == 0
    data = hpcgnn.to_pyg(tmp_path / "g.h5")
    assert data.node_types == sorted(COUNTS) and data.edge_types == sorted(TRIPLES)
    assert data["paper"].y.tolist() == content()[2].tolist() and "y" not in data["author"]


def test_given_ids_replace_names(tmp_path):
    ids, out = np.arange(60)[::-1], tmp_path / "g.h5"
    np.save(tmp_path / "ids.npy", ids)
    given = ("--ids", str(tmp_path / "ids.npy"))
    assert main(["convert", str(write_mag(tmp_path / "g")), str(out), *given]) == 0
    with GraphFile(out) as file:
        assert file.names is None
        assert np.array_equal(file.read_nodes(0, 60).original_ids, ids)
    assert main(["convert", str(tmp_path / "g"), str(out), "--force"]) == 0
    with GraphFile(out) as file:
        assert file.names is not None and file.names.texts(0, 2) == ["author/0", "author/1"]


def pack(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


MAG = [
    ("raw/num-node-dict.csv.gz", "paper,author\n40\n", "a line of one value for each"),
    ("raw/num-node-dict.csv.gz", "../x\n40\n", "is not the name of a type"),
    ("raw/num-node-dict.csv.gz", "paper,paper\n40,3\n", "a line of types"),
    ("raw/num-node-dict.csv.gz", "paper\n-4\n", "number of nodes of paper must be one"),
    ("raw/num-node-dict.csv.gz", "paper\n40\n", "no node type of this name"),
    ("raw/triplet-type-list.csv.gz", "a,b\n", "must hold lines of source, relation"),
    ("raw/triplet-type-list.csv.gz", "\n", "lists no type of edges"),
    ("raw/triplet-type-list.csv.gz", "../../a,r,paper\n", "is not the name of a type"),
    ("raw/triplet-type-list.csv.gz", "paper,cites,paper\n" * 2, "twice"),
    ("raw/triplet-type-list.csv.gz", "paper,likes,paper\n", "no such file"),
    ("raw/triplet-type-list.csv.gz", "book,cites,paper\n", "no node type of this name"),
    ("raw/relations/paper___cites___paper/edge.csv.gz", "0,40\n" * 60, "must lie in 0 .. 39"),
    ("raw/relations/paper___cites___paper/edge.csv.gz", "0,1\n", "num-edge-list says 60"),
    ("raw/node-feat/paper/node-feat.csv.gz", "1,2\n" * 41, "more rows than there are nodes"),
    ("raw/node-label/paper/node-label.csv.gz", "1\n" * 39, "must have a row for each of 40"),
    ("split/time/paper/train.csv.gz", "40\n", "nodes of this type are 0 .. 39"),
    ("raw/nodetype-has-label.csv.gz", "book\nTrue\n", "no node type of this name"),
    ("split/time/nodetype-has-split.csv.gz", "book\nFalse\n", "no node type of this name"),
]


@pytest.mark.parametrize(("name", "text", "words"), MAG)
def test_bad_ogb_mag_files_are_refused(refused, tmp_path, name, text, words):
    pack(write_mag(tmp_path / "g") / name, text)
    assert words in refused(tmp_path / "g")


def extra_label(root: Path) -> None:
    np.save(root / "nodes" / "author" / "labels.npy", np.zeros(12, int))


FOLDERS = [
    (lambda root: (root / "nodes" / "paper" / "x.txt").write_text("1"), "is not .npy"),
    (lambda root: (root / "nodes" / "author" / "age.csv").write_text("1"), "exists twice"),
    (lambda root: (root / "nodes" / "new").mkdir(), "doesn't give the number of nodes"),
    (lambda root: (root / "edges" / "a___b").mkdir(), "must be named SOURCE___RELATION"),
    (lambda root: (root / "edges" / "a___b___paper").mkdir(), "has no edges"),
    (extra_label, "labels for several node types"),
    (
        lambda root: (root / "nodes" / "author" / "num_nodes.csv").write_text("7\n"),
        "must lie in 0 .. 6",
    ),
    (
        lambda root: (root / "edges" / "paper___cites___paper" / "labels.csv").write_text("1"),
        "must be .npy",
    ),
    (
        lambda root: (root / "edges" / "paper___cites___paper" / "edges.csv").write_text("1\n"),
        "must have two columns",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), FOLDERS)
def test_bad_folders_are_refused(refused, tmp_path, spoil, words):
    spoil(write_folders(tmp_path / "g"))
    assert words in refused(tmp_path / "g")


@pytest.mark.mpi
@pytest.mark.parametrize("model", ["rgcn", "rgat"])
def test_a_relational_model_learns_on_several_node_types(comm, shared_path, model):
    graph, parts, out = shared_path / "g.h5", shared_path / "p.h5", shared_path / "run"
    with agreed(comm, "convert"):
        if comm.rank == 0:
            parser = argparse.ArgumentParser()
            convert_verb.add_arguments(parser)
            given = [str(write_mag(shared_path / "mag")), str(graph), "--inverse-relations"]
            convert_verb.run(parser.parse_args(given), None)
    call(comm, partition, graph, "--method", "random", "--out", parts)
    call(
        comm,
        train,
        parts,
        "--model",
        model,
        "--layers",
        2,
        "--hidden",
        8,
        "--epochs",
        15,
        "--lr",
        0.05,
        "--dropout",
        0,
        "--run-dir",
        out,
    )
    kinds = KindNames(tuple(sorted(COUNTS)), tuple(", ".join(name) for name in sorted(TRIPLES)))
    assert load_partition(parts, comm).kinds == kinds == read_checkpoint(out, comm)[1].kinds
    if comm.size == 1:
        assert load_partition(graph, comm).kinds == kinds
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 15 and losses[-1] < 0.1 * losses[0]
    call(comm, predict, parts, out, "--out", shared_path / "y.h5")
    with agreed(comm, "compare"):
        if comm.rank == 0 and model == "rgcn":
            export(out, shared_path / "w.pt")
            wanted = in_pytorch_geometric(graph, torch.load(shared_path / "w.pt"))
            with h5py.File(shared_path / "y.h5") as file:
                found = torch.from_numpy(file["probabilities"][...])
                ids = [name.decode() for name in file["original_ids"][...]]
            assert ids == [f"{kind}/{k}" for kind in sorted(COUNTS) for k in range(COUNTS[kind])]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def in_pytorch_geometric(graph: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the output of the two layers for each node, from its features or its embedding."""
    with GraphFile(graph) as file:
        slab, nodes = file.read_rows(0, file.num_nodes), file.read_nodes(0, file.num_nodes)
    ends = np.stack([slab.indices, np.repeat(np.arange(slab.hi), np.diff(slab.indptr))])
    edges = torch.from_numpy(ends), torch.from_numpy(slab.relation).long()
    (kind,) = nodes.typed_features
    x = weights["inputs.embedding.weight"].clone()
    own = torch.nn.Linear(CLASSES, x.shape[1])
    own.load_state_dict({k: weights[f"inputs.maps.{kind}.{k}"] for k in ("weight", "bias")})
    with torch.no_grad():
        x[nodes.type == kind] = own(torch.from_numpy(nodes.typed_features[kind]))
        for number, (a, b) in enumerate([(8, 8), (8, CLASSES)]):
            layer = pyg.RGCNConv(a, b, 2 * len(TRIPLES))
            names = dict(layer.named_parameters())
            layer.load_state_dict({k: weights[f"convs.{number}.{k}"] for k in names})
            x = layer(x.relu() if number else x, *edges)
    return x.softmax(dim=1)
