"""The memory of laying out the parts: the estimate beside what is measured, and the refusal."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.partition import problem as machines
from hpcgnn.partition import routing
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.layout import assembly, columns, memory
from hpcgnn.partition.layout.sources import FileSource
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.pipeline import partition_graph
from hpcgnn.partition.problem import Problem
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


@pytest.mark.parametrize("kind", ["dense", "sparse", "typed", "weights", "edges"])
def test_estimate_is_near_what_is_measured(comm, tmp_path, monkeypatch, kind):
    """Without the fixed bytes, which are for windows, libraries and what the allocator keeps."""
    path = tmp_path / "graph.h5"
    write(path, kind)
    for module, name, value in (
        (memory, "_FIXED", 0),
        (memory, "_WINDOWS", 0),
        (columns, "_WINDOW_BYTES", 1 << 17),
        (columns, "EDGES", 1 << 13),
        (assembly, "EDGES", 1 << 13),
        (routing, "ROWS", 1 << 12),
    ):
        monkeypatch.setattr(module, name, value)
    with GraphFile(path) as graph:
        source = FileSource(graph, 0, N)
        edges = SlabEdges(0, N, source.indptr, graph.read_sources)
        owner = np.random.default_rng(0).integers(0, 2, N, np.int32)
        given = Problem(edges, N, 2, np.empty(0, int), owner, PartitionOptions())
        need = memory.LayoutNeed.of(comm, graph, given, "random")
        tracemalloc.start()
        _, numbers = assembly.build(comm, source, owner, 2, N)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert bool(numbers.symmetric) == (kind == "weights")
    assert 0.85 < need.bytes(1.0, symmetric=bool(numbers.symmetric)) / measured < 1.15


@pytest.mark.mpi
def test_a_graph_that_will_not_fit_is_refused_before_the_method(comm, shared_path, monkeypatch):
    path = shared_path / "graph.h5"
    if comm.rank == 0:
        write_graph(path, grid_edges(20, 20), 400)
    comm.barrier()
    monkeypatch.setattr(machines, "available_memory", lambda: 10 << 20)
    with monkeypatch.context() as patch:
        patch.setattr("hpcgnn.partition.pipeline.assign", lambda *_: pytest.fail("called"))
        with pytest.raises(InputError, match=r"laying out the parts would need about 0\.\d GiB on"):
            partition_graph(comm, path, 2, "random", shared_path / "out.h5")
    enough = int(26e6 + 16e6 + 1e6) * comm.size
    for room, noted in ((2 * enough, False), (enough * 9 // 10, True)):
        monkeypatch.setattr(machines, "available_memory", lambda room=room: room)
        report = partition_graph(comm, path, 2, "random", shared_path / f"{room}.h5")
        assert any("laying out the parts may need" in note for note in report["notes"]) == noted
