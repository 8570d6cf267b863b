"""Sorting in bounded memory, compared with NumPy's sort of everything at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import slabs as module
from hpcgnn.storage.importers.edge_records import with_ends
from hpcgnn.storage.importers.ids import distinct, given, ids_by_row, rows_of_edges
from hpcgnn.storage.importers.slabs import sorted_slabs
from hpcgnn.storage.importers.source import Column
from hpcgnn.storage.importers.spool import Scratch

EDGE = np.dtype([("source", np.int64), ("destination", np.int64), ("mark", np.int32)])


def edges(source, destination, dtype=EDGE) -> np.ndarray:
    out = np.zeros(len(source), dtype)
    out["source"], out["destination"], out["mark"] = source, destination, np.arange(len(source))
    return out


@pytest.mark.parametrize("many", [0, 1 << 20])
@pytest.mark.parametrize("spans", [(1, 1), (3, 2), (50, 900), (10**9, 5), (2**40, 2**40)])
@pytest.mark.parametrize("number", [1, 2, 7, 1000])
def test_pairs_are_sorted(monkeypatch, number, spans, many):
    monkeypatch.setattr(module, "_MANY", many)
    rng = np.random.default_rng(number)
    pairs = edges(*(rng.integers(k - 3, k - 3 + span, number) for k, span in enumerate(spans)))
    found = module.sorting_order(pairs, ("destination", "source"))
    assert (found == np.lexsort([pairs["source"], pairs["destination"]])).all()


def keys(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "uniform": lambda: rng.integers(0, 1000, number),
        "power law": lambda: (1e15 * rng.random(number) ** 20).astype(np.int64),
        "ascending": lambda: np.arange(number),
        "far apart": lambda: rng.choice(np.array([0, 1, 2**62, 2**63 - 1]), number),
        "one far": lambda: np.where(np.arange(number) == 77, 2**63 - 1, np.arange(number) % 3),
    }[kind]()


@pytest.mark.parametrize("kind", ["uniform", "power law", "ascending", "far apart", "one far"])
@pytest.mark.parametrize("limit", [1 << 11, 1 << 15, 1 << 24])
@pytest.mark.parametrize("number", [0, 1, 7, 20_000])
def test_sorting_is_stable(tmp_path, kind, limit, number):
    rng = np.random.default_rng(number)
    records = edges(keys("uniform", number, rng), keys(kind, number, rng))
    with Scratch(tmp_path / "out.h5", limit) as scratch:
        stored = scratch.records(EDGE)
        for chunk in np.array_split(records, 13):
            stored.append(chunk)
        slabs = list(sorted_slabs(stored, scratch, ("destination",), whole=False))
        assert all(slab.nbytes <= max(limit, 4 << 20) for slab in slabs)
        found = np.concatenate([np.empty(0, EDGE), *slabs])
        assert list(scratch.folder.iterdir()) == []
    order = np.argsort(records["destination"], kind="stable")
    assert (found == records[order]).all() and found.shape == records.shape
    assert list(tmp_path.iterdir()) == []


def test_all_edges_of_a_node_stay_together_or_are_refused(tmp_path):
    rng = np.random.default_rng(3)
    records = edges(rng.integers(0, 9, 5000), rng.integers(0, 50, 5000))
    with Scratch(tmp_path / "out.h5", 5000) as scratch:
        stored = scratch.records(EDGE)
        stored.append(records)
        slabs = list(sorted_slabs(stored, scratch, ("destination", "source"), whole=True))
        assert len(slabs) > 10
        for before, after in pairwise(slabs):
            assert before["destination"][-1] < after["destination"][0]
        order = np.lexsort((records["source"], records["destination"]))
        assert (np.concatenate(slabs) == records[order]).all()
        stored = scratch.records(EDGE)
        stored.append(edges(np.arange(600), np.full(600, 42)))
        with pytest.raises(InputError, match=r"node 42 alone has 600 edges.*raise --memory"):
            list(sorted_slabs(stored, scratch, ("destination",), whole=True))


ENDS = np.dtype([("source", np.int32), ("destination", np.int32)])


@pytest.mark.parametrize("whole", [False, True])
def test_edge_ends_are_sorted_in_pieces(tmp_path, whole):
    """A third of the edges have the same destination, more than a piece holds."""
    rng = np.random.default_rng(5)
    records = np.empty(150_000, ENDS)
    records["source"] = rng.integers(0, (1 << 31) - 1, 150_000, endpoint=True)
    records["destination"] = rng.integers(0, 9000, 150_000) * (rng.random(150_000) < 0.67)
    with Scratch(tmp_path / "out.h5", 500_000) as scratch:  # the 1.2 MB of numbers are allowed
        stored = scratch.records(ENDS)
        for part in np.array_split(records, 11):
            stored.append(part)
        slabs = list(sorted_slabs(stored, scratch, ("destination", "source"), whole=whole))
    order = np.lexsort((records["source"], records["destination"]))
    assert (np.concatenate(slabs) == records[order]).all()
    assert len(slabs) > 2
    ends = [(a["destination"][-1], b["destination"][0]) for a, b in pairwise(slabs)]
    assert not whole or all(last < first for last, first in ends)


@pytest.mark.parametrize("kind", ["uniform", "power law", "one far", "ascending"])
@pytest.mark.parametrize("limit", [400_000, 1 << 22])
def test_ends_are_sorted_in_buckets(tmp_path, monkeypatch, kind, limit):
    """The arrays are cut at the same edges as after a sort of all at once."""
    rng = np.random.default_rng(6)
    records = np.empty(140_000, ENDS)
    records["source"] = rng.integers(0, (1 << 31) - 1, 140_000, endpoint=True)
    records["destination"] = keys(kind, 140_000, rng) % (1 << 31)
    slabs = {}
    for many in (1, 1 << 20):
        monkeypatch.setattr(module, "_MANY", many)
        with Scratch(tmp_path / "out.h5", limit) as scratch:
            stored = scratch.records(ENDS)
            stored.append(records)
            slabs[many] = list(sorted_slabs(stored, scratch, ("destination", "source"), whole=True))
    order = np.lexsort((records["source"], records["destination"]))
    assert (np.concatenate(slabs[1]) == records[order]).all()
    assert [len(slab) for slab in slabs[1]] == [len(slab) for slab in slabs[1 << 20]]


def test_a_node_with_more_ends_than_fit_is_named(tmp_path):
    records = np.zeros(100_000, ENDS)
    records["destination"] = np.arange(100_000) // 70_000 + 41
    with Scratch(tmp_path / "out.h5", 400_000) as scratch:
        stored = scratch.records(ENDS)
        stored.append(records)
        with pytest.raises(InputError, match=r"node 41 alone has 70,000 edges, .* 560\.0 kB"):
            list(sorted_slabs(stored, scratch, ("destination", "source"), whole=True))


@pytest.mark.parametrize("limit", [1 << 11, 1 << 24])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_ids_are_replaced_by_rows(tmp_path, limit, listed, narrow):
    """Of 4 bytes, too, if a table over all of them would not fit."""
    rng = np.random.default_rng(8)
    names = rng.choice(2**31 if narrow else 2**62, 701, replace=False)
    dtype = with_ends(EDGE, np.int32) if narrow else EDGE
    records = edges(rng.choice(names, 9000), rng.choice(names, 9000), dtype)
    used = np.unique([records["source"], records["destination"]])
    with Scratch(tmp_path / "out.h5", limit) as scratch:
        stored = scratch.records(dtype)
        stored.append(records)
        column = Column(tmp_path / "ids", "array", iter(np.array_split(names, 3)))
        table = given(column, scratch) if listed else distinct(stored, int(used.max()), scratch)
        rows = rows_of_edges(stored, table, scratch, column).load()
        ids = np.concatenate(list(ids_by_row(table, scratch)))
    assert ids.tolist() == (names if listed else used).tolist()
    rows = rows[np.argsort(rows["mark"])]
    assert (ids[rows["source"]] == records["source"]).all()
    assert (ids[rows["destination"]] == records["destination"]).all()
