"""The rows of nodes in an earlier graph, for graphs converted with `--like`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcgnn.storage.importers.earlier_rows import earlier_rows
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.read.graph_file import GraphFile

FORMS = {"text": "acct{}", "numbers": "{}"}


def write_tables(folder: Path, name: str, ids: list[str], rng: np.random.Generator) -> list:
    """Write a table of nodes and one of edges between them; return arguments of `made`."""
    edges, nodes = folder / f"{name}_edges.csv", folder / f"{name}.csv"
    pairs = "".join(f"{a},{b}\n" for a, b in rng.choice(ids, (300, 2)))
    edges.write_text("source,target\n" + pairs)
    nodes.write_text("id,x\n" + "".join(f"{id},1\n" for id in ids))
    return [edges, nodes, "--nodes", "1", "--features", "x"]


def rows_of(path: Path) -> list[int]:
    with GraphFile(path) as graph:
        return graph.read_nodes(0, graph.num_nodes).named["row_in_like"].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_nodes_are_found_by_their_ids(made, tmp_path, form):
    """Also if the earlier graph was itself read like another one, whose rows then count."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(150).tolist()
    ids = [FORMS[form].format(k) for k in numbers]
    lists = {"first": ids[:100], "second": ids[60:120][::-1], "third": sorted(ids)}
    paths: dict[str, Path] = {}
    for name, before in (("first", None), ("second", "first"), ("third", "second")):
        like = [] if before is None else ["--like", str(paths[before])]
        tables = write_tables(tmp_path, name, lists[name], rng)
        paths[name] = made(*tables, *like, out=f"{name}.h5")
    at = {id: row for row, id in enumerate(lists["first"])}
    assert rows_of(paths["second"]) == [at.get(id, -1) for id in lists["second"]]
    through = set(lists["second"])
    expected = [at.get(id, -1) if id in through else -1 for id in lists["third"]]
    assert rows_of(paths["third"]) == expected
    with GraphFile(paths["first"]) as graph:
        assert graph.array_names == []
    np.save(tmp_path / "r.npy", np.zeros(100, np.int64))
    array = ("--node-array", f"row_in_like={tmp_path / 'r.npy'}")  # any array of the user's
    tables = write_tables(tmp_path, "other", lists["first"], rng)
    like = ("--like", str(made(*tables, *array, out="other.h5")))
    assert rows_of(made(*tables, *like, out="again.h5")) == list(range(100))


def test_memory_is_bounded(made, tmp_path):
    """Records that don't fit the limit are joined in slabs, with the same result."""
    rng = np.random.default_rng(1)
    ids = [str(k) for k in rng.permutation(5000)]
    path = made(*write_tables(tmp_path, "first", ids, rng))
    with Scratch(tmp_path / "x.h5", 4096) as scratch:
        chunks = list(earlier_rows(path, None, None, 6000, scratch))
    assert len(chunks) > 1
    at = {int(id): row for row, id in enumerate(ids)}
    assert np.concatenate(chunks).tolist() == [at.get(k, -1) for k in range(6000)]


def test_an_array_of_the_same_name_is_refused(made, refused, tmp_path):
    rng = np.random.default_rng(2)
    edges, nodes, *options = write_tables(tmp_path, "first", ["a", "b"], rng)
    first = made(edges, nodes, *options)
    np.save(tmp_path / "r.npy", np.zeros(2))
    array = ("--node-array", f"row_in_like={tmp_path / 'r.npy'}")
    said = refused(edges, "--nodes", str(nodes), "--like", str(first), *array)
    assert "--like stores an array row_in_like: name yours otherwise" in said
