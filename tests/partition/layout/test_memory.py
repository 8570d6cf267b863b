"""The memory of laying out the parts: the estimate beside what is measured, and the refusal."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hpcgnn.comm import shortage as machines
from hpcgnn.errors import InputError
from hpcgnn.partition import routing
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.layout import assembly, blocks, columns, memory
from hpcgnn.partition.layout.sources import FileSource
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.pipeline import partition_graph
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.quality import random_numbers
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.write.graph_writer import GraphWriter
from tests.partition.slabs import grid_edges, random_edges, slab_of, write_graph

N = 10_000


def write(path, kind):
    """Write a graph whose largest data are those of the kind."""
    rng = np.random.default_rng(0)
    source, target = random_edges(N, 20 * N)
    if kind == "weights":
        source, target = np.append(source, target), np.append(target, source)
        order = np.argsort(target, kind="stable")
        source, target = source[order], target[order]
    slab, count, values = slab_of(source, target, 0, N), len(source), {}
    if kind == "weights":
        values = {"weight": ((source + target) % 7).astype(np.float32)}
    elif kind == "edges":
        values = {
            "relation": rng.integers(0, 3, count),
            "edge_features": rng.random((count, 4)).astype(np.float32),
        }
    with GraphWriter(path, num_nodes=N, config={}) as writer:
        writer.append_rows(np.diff(slab.indptr), slab.indices, **values)
        if kind == "sparse":
            stored = np.full(N, 100)
            column = np.tile(np.arange(100), N)
            writer.append_sparse_features(stored, column, np.ones(100 * N, np.float32), 100)
        elif kind == "typed":
            kinds = np.arange(N) % 2
            writer.append_types(kinds)
            writer.append_typed_features(1, rng.random((N // 2, 400)).astype(np.float32))
        elif kind == "dense":
            writer.append_features(rng.random((N, 200)).astype(np.float32))


def use_small_windows(monkeypatch):
    for module, name, value in (
        (memory, "_FIXED", 0),
        (memory, "_WINDOWS", 0),
        (columns, "_WINDOW_BYTES", 1 << 17),
        (columns, "EDGES", 1 << 13),
        (assembly, "EDGES", 1 << 13),
        (blocks, "ROWS", 1 << 12),
        (routing, "ROWS", 1 << 12),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("kind", ["dense", "sparse", "typed", "weights", "edges"])
def test_estimate_is_near_what_is_measured(comm, tmp_path, monkeypatch, kind):
    """Without the fixed bytes, which are for windows, libraries and what the allocator keeps."""
    path = tmp_path / "graph.h5"
    write(path, kind)
    use_small_windows(monkeypatch)
    with GraphFile(path) as graph:
        source = FileSource(graph, 0, N)
        edges = SlabEdges(0, N, source.indptr, graph.read_sources)
        owner = np.random.default_rng(0).integers(0, 2, N, np.int32)
        given = Problem(edges, N, 2, np.empty(0, int), owner, PartitionOptions())
        need = memory.LayoutNeed.of(graph, 2, "random")
        held = memory.if_even(comm, graph, given).of(range(2))
        tracemalloc.start()
        _, numbers = assembly.build(comm, source, owner, 2, N)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert bool(numbers.symmetric) == (kind == "weights")
    assert 0.85 < need.bytes(held, symmetric=bool(numbers.symmetric)) / measured < 1.15


@pytest.mark.mpi
@pytest.mark.several_ranks
def test_a_part_that_most_edges_leave_is_not_underestimated(comm, shared_path, monkeypatch):
    path, size = shared_path / "graph.h5", comm.size
    if comm.rank == 0:
        source, target = random_edges(N, 40 * N)
        with GraphWriter(path, num_nodes=N, config={}) as writer:
            writer.append_rows(np.bincount(target, minlength=N), source // size)
    comm.barrier()
    use_small_windows(monkeypatch)
    with GraphFile(path) as graph:
        low, high = (N * rank // size for rank in (comm.rank, comm.rank + 1))
        source = FileSource(graph, low, high)
        edges = SlabEdges(low, high, source.indptr, graph.read_sources)
        owner = (np.arange(low, high) * size // N).astype(np.int32)
        problem = Problem(edges, N, size, np.empty(0, int), owner, PartitionOptions())
        _, out_edges = random_numbers(comm, problem, owner)
        held = memory.as_cut(comm, graph, problem, owner, out_edges)
        tracemalloc.start()
        assembly.build(comm, source, owner, size, N)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        need = memory.LayoutNeed.of(graph, size, "block").bytes(
            held.of(range(comm.rank, comm.rank + 1)), symmetric=False
        )
    ratio_P = comm.allgather(need / measured)
    assert 0.97 < ratio_P[0] < 1.5 and min(ratio_P) > 0.97


@pytest.mark.parametrize("kind", ["sparse", "typed", "edges"])
def test_what_uneven_parts_hold_is_counted(comm, tmp_path, kind):
    path, parts = tmp_path / "graph.h5", 3
    write(path, kind)
    owner = (np.arange(N) ** 2 * parts // N**2).astype(np.int32)
    with GraphFile(path) as graph:
        indptr = graph.read_indptr(0, N)
        problem = Problem(
            SlabEdges(0, N, indptr, graph.read_sources),
            N,
            parts,
            np.empty(0, int),
            owner,
            PartitionOptions(),
        )
        _, out_edges = random_numbers(comm, problem, owner)
        held = memory.as_cut(comm, graph, problem, owner, out_edges)
        source, target = graph.read_sources(0, N), np.repeat(np.arange(N), np.diff(indptr))
        data = graph.read_nodes(0, N).arrays()
        assert held.node_bytes.sum() == pytest.approx(graph.node_bytes, rel=1e-3)
    assert np.array_equal(held.nodes, np.bincount(owner))
    assert np.array_equal(held.edges, np.bincount(owner[target]))
    assert np.array_equal(held.out_edges, np.bincount(owner[source]))
    if kind == "typed":
        typed = np.bincount(owner[data["nodes/type"] == 1], minlength=parts)
        assert np.array_equal(held.node_bytes, 1600 * typed + 4 * np.bincount(owner))
    for near, far, entries, sources in (
        (target, source, held.entries, held.sources),
        (source, target, held.out_entries, held.out_sources),
    ):
        for part in range(parts):
            mine = owner[near] == part
            pairs = len(np.unique(near[mine] * parts + owner[far[mine]]))
            reads = len(np.unique(np.append(far[mine], np.flatnonzero(owner == part))))
            assert 0.97 * pairs < entries[part] < 1.6 * pairs
            assert 0.75 * reads < sources[part] < 1.05 * reads


@pytest.mark.mpi
@pytest.mark.several_ranks
@pytest.mark.parametrize(("reverse", "room"), [(False, 3.2e6), (True, 9e6)], ids=["in", "out"])
def test_a_part_that_will_not_fit_is_refused_once_it_is_known(
    comm, shared_path, monkeypatch, reverse, room
):
    """Of a graph whose edges nearly all lead to, or from, the first tenth of the nodes."""
    path, n = shared_path / "graph.h5", 1000
    if comm.rank == 0:
        few, many = (np.sort(random_edges(k, 100_000)[0]) for k in (n // 10, n))
        np.random.default_rng(0).shuffle(few if reverse else many)  # the sources
        source, target = (few, many) if reverse else (many, few)
        values = {"edge_features": np.ones((len(few), 4), np.float32)} if reverse else {}
        with GraphWriter(path, num_nodes=n, config={}) as writer:
            writer.append_rows(np.bincount(target, minlength=n), source, **values)
    comm.barrier()
    monkeypatch.setattr(machines.socket, "gethostname", lambda: f"node{comm.rank}")
    monkeypatch.setattr(machines, "available_memory", lambda: int(room / comm.size))
    monkeypatch.setattr(memory, "_FIXED", 0)
    monkeypatch.setattr(memory, "_WINDOWS", 0)
    partition_graph(comm, path, comm.size, "random", shared_path / "random.h5")
    way = "out" if reverse else "in"
    with pytest.raises(InputError, match=f"one part has .* times the mean of {way}-edges, so"):
        partition_graph(comm, path, comm.size, "block", shared_path / "block.h5")


@pytest.mark.mpi
def test_a_graph_that_will_not_fit_is_refused_before_the_method(comm, shared_path, monkeypatch):
    path = shared_path / "graph.h5"
    if comm.rank == 0:
        write_graph(path, grid_edges(20, 20), 400)
    comm.barrier()
    monkeypatch.setattr(machines, "available_memory", lambda: 10 << 20)
    with monkeypatch.context() as patch:
        patch.setattr("hpcgnn.partition.pipeline.assign", lambda *_: pytest.fail("called"))
        with pytest.raises(InputError, match=r"laying out the parts would need about \d+\.\d MB"):
            partition_graph(comm, path, 2, "random", shared_path / "out.h5")
    enough = int(26e6 + 16e6 + 1e6) * comm.size
    for room, noted in ((2 * enough, False), (enough * 9 // 10, True)):
        monkeypatch.setattr(machines, "available_memory", lambda room=room: room)
        report = partition_graph(comm, path, 2, "random", shared_path / f"{room}.h5")
        assert any("laying out the parts may need" in note for note in report["notes"]) == noted
