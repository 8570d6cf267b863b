"""Triples with relations, as text and as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

TRIPLES = [(50, 0, 7), (7, 2, 50), (7, 1, 50), (9, 1, 9), (50, 0, 7)]


def found(graph) -> list[tuple[int, int, int]]:
    """Return (head, relation, tail) by original ids, ascending."""
    ids = graph.nodes.original_ids
    ids = np.arange(graph.counts.num_nodes) if ids is None else ids
    columns = (ids[graph.slab.indices], graph.slab.relation, ids[graph.destinations])
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "g.tsv"
    path.write_text("".join(f"{h}\t{r}\t{t}\n" for h, r, t in TRIPLES))
    return path


def test_triples_from_text(convert, text):
    graph = convert(text, "--format", "triples")
    assert found(graph) == sorted(TRIPLES)
    assert graph.counts.num_relations == 3
    columns = convert(text, "--format", "triples", "--columns", "3,2,1")
    assert found(columns) == sorted((t, r, h) for h, r, t in TRIPLES)


def test_inverse_relations(convert, text):
    graph = convert(text, "--format", "triples", "--inverse-relations")
    assert found(graph) == sorted(TRIPLES + [(t, r + 3, h) for h, r, t in TRIPLES])
    assert graph.counts.num_relations == 6
    once = convert(text, "--format", "triples", "--inverse-relations", "--deduplicate")
    assert found(once) == sorted(set(TRIPLES) | {(t, r + 3, h) for h, r, t in TRIPLES})


def test_symmetrise_keeps_the_relation(convert, text):
    graph = convert(text, "--format", "triples", "--symmetrise")
    assert found(graph) == sorted({*TRIPLES, *((t, r, h) for h, r, t in TRIPLES)})
    assert graph.counts.num_relations == 3


def test_unused_relations_are_counted(convert, tmp_path):
    head, relation, tail = np.array(TRIPLES).T % 7
    arrays = {"head": head, "relation": relation, "tail": tail}
    np.savez(tmp_path / "g.npz", **arrays, num_nodes=8, num_relations=5, type=np.arange(8) % 3)
    graph = convert(tmp_path / "g.npz", "--inverse-relations")
    assert graph.counts.num_relations == 10 and graph.counts.num_types == 3
    assert graph.slab.relation.max() == 7


def test_aifb_is_read(convert, data):
    source = np.load(data / "aifb.npz", allow_pickle=False)
    graph = convert(data / "aifb.npz")
    names = ("subject", "relation", "object")
    truth = sorted(zip(*(source[name].tolist() for name in names), strict=True))
    assert found(graph) == truth
    assert (graph.counts.num_relations, graph.counts.num_classes) == (45, 4)
    assert (graph.nodes.labels == source["labels"]).all()
    assert [int((graph.nodes.split == k).sum()) for k in (1, 2, 3)] == [140, 0, 36]
    both = convert(data / "aifb.npz", "--inverse-relations")
    assert found(both) == sorted(truth + [(t, r + 45, h) for h, r, t in truth])
    assert both.counts.num_relations == 90


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 -1 2", "line 6: relation must not be negative (found -1)"),
        ("1 99999999 2", "there are only 6 edges (found 99999999)"),
        ("1 99999999999 2", "line 6: relation must be below 1073741824 (found 99999999999)"),
        ("1 2", "line 6: has 2 columns, not 3"),
        ("/m/1 /r/2 /m/3", "line 6: is not an integer (found '/m/1')"),
    ],
)
def test_bad_lines_are_refused(refused, text, line, message):
    text.write_text(text.read_text() + line.replace(" ", "\t"))
    assert message in refused(text, "--format", "triples")


def test_contradictory_options_are_refused(refused, text, tmp_path):
    triples = (text, "--format", "triples")
    assert "choose one" in refused(*triples, "--symmetrise", "--inverse-relations")
    assert "self-loop" in refused(*triples, "--self-loops", "add")
    (tmp_path / "e.txt").write_text("0 1\n")
    assert "has no relations" in refused(tmp_path / "e.txt", "--inverse-relations")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relation": np.array([0, 5])}, "relation must be below 5 (found 5)"),
        ({"relation": np.array([0])}, "same number of edges"),
        ({"tail": np.array([0, 8])}, "edge 1: destination must be below 8 (found 8)"),
        ({"tail": np.zeros((2, 1), int)}, "tail: must have 1 dimensions"),
        ({"type": np.full(8, -1)}, "type: node types lie in 0"),
        ({"type": np.full(8, 10**6)}, "type: node types lie in 0"),
        ({"num_relations": np.array(-1)}, "num_relations: must not be negative"),
        ({"typed_features_0": np.ones((8, 2))}, "need the node types"),
        (
            {"type": np.arange(8) % 2, "typed_features_1": np.ones((5, 2))},
            "typed_features_1: has more rows than there are nodes (4)",
        ),
    ],
)
def test_bad_arrays_are_refused(refused, tmp_path, change, message):
    arrays = {"head": [0, 1], "relation": [0, 4], "tail": [2, 3], "num_relations": 5}
    np.savez(tmp_path / "g.npz", **(arrays | {"num_nodes": 8} | change))
    assert message in refused(tmp_path / "g.npz")
