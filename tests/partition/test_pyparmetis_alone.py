"""`hpcgnn.pyparmetis` on mpi4py communicators, with weights, sizes and coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

from hpcgnn import pyparmetis
from hpcgnn.errors import InputError
from tests.partition.slabs import grid_edges, slab_of
from tests.test_readme import blocks

pytestmark = pytest.mark.mpi
WIDTH = 20


@pytest.fixture(params=["world", "half"])
def mpi(comm, request):
    """A communicator of all ranks, and one of every second rank."""
    if request.param == "world":
        yield MPI.COMM_WORLD
        return
    part = MPI.COMM_WORLD.Split(comm.rank % 2, comm.rank)
    yield part
    part.Free()


@pytest.fixture
def library(parmetis, mpi):
    return pyparmetis.load(mpi)


def grid(mpi) -> pyparmetis.Rows:
    """Columns 0 .. 9 weigh 3, others 1; edges between columns 9 and 10 weigh 1, others 9."""
    source, target = grid_edges(WIDTH, WIDTH)
    bounds = WIDTH * WIDTH * np.arange(mpi.size + 1) // mpi.size
    low, high = bounds[mpi.rank : mpi.rank + 2]
    slab, own = slab_of(source, target, low, high), np.arange(low, high)
    here = np.repeat(own, np.diff(slab.indptr)) % WIDTH
    border = (here + slab.indices % WIDTH == 19) & (here != slab.indices % WIDTH)
    return pyparmetis.Rows(
        bounds,
        slab.indptr,
        slab.indices,
        vertex_weights=np.where(own % WIDTH < 10, 3, 1),
        edge_weights=np.where(border, 1, 9),
        vertex_sizes=np.full(len(own), 2),
        coordinates=np.stack([own % WIDTH, own // WIDTH], axis=1),
    )


def weights_of(mpi, rows, part, parts) -> np.ndarray:
    assert part.dtype == np.int32 and len(part) == rows.num_rows
    return mpi.allreduce(np.bincount(part, rows.vertex_weights, parts))


def test_vertex_weights_are_balanced(mpi, library):
    rows = grid(mpi)
    heavy = weights_of(mpi, rows, library.part_kway(mpi, rows, 4), 4)
    assert heavy.sum() == 800 and heavy.max() <= 1.15 * 200


def test_edge_weights_are_respected(mpi, library):
    """Without vertex weights, the border of light edges halves the grid."""
    rows = replace(grid(mpi), vertex_weights=None)
    part = np.concatenate(mpi.allgather(library.part_kway(mpi, rows, 2)))
    if library.scotch:
        pytest.skip("PT-Scotch's interface takes edge weights, but promises no cut")
    halves = part.reshape(WIDTH, WIDTH)
    source, target = grid_edges(WIDTH, WIDTH)
    x, y = source % WIDTH, target % WIDTH
    weight = np.where((x + y == 19) & (x != y), 1, 9)
    cut = weight[part[source] != part[target]].sum() // 2
    assert cut < 9 * WIDTH, halves  # 20 along the border; 180 along any other straight line


def test_the_example_of_the_page_runs(comm, parmetis):
    ((_, code),) = blocks("python", "docs/partition.md")
    rows = grid(MPI.COMM_WORLD)
    names = {name: getattr(rows, name) for name in ("vtxdist", "xadj", "adjncy")}
    names |= {"weights": rows.vertex_weights, "edge_weights": rows.edge_weights}
    exec(code, names)
    assert (weights_of(MPI.COMM_WORLD, rows, names["part"], 8) > 0).all()


@pytest.mark.parametrize("name", ["refine_kway", "adaptive_repart", "part_geom_kway"])
def test_other_routines_balance_parts(mpi, library, name):
    rows = grid(mpi)
    start = library.part_kway(mpi, rows, 2)
    given = () if name == "part_geom_kway" else (start,)
    try:
        part = getattr(library, name)(mpi, rows, *given, 2)
    except InputError as error:
        assert "has no ParMETIS_V3_" in str(error)
        return
    heavy = weights_of(mpi, rows, part, 2)
    assert heavy.sum() == 800 and heavy.max() <= 1.15 * 400


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"adjncy": lambda rows: rows.adjncy + 400}, "adjncy must lie in"),
        ({"xadj": lambda rows: rows.xadj[:-1]}, "xadj"),
        ({"edge_weights": lambda rows: rows.edge_weights[:-1]}, "edge_weights must have"),
        ({"coordinates": lambda rows: rows.coordinates[:, :1]}, "2 or 3 columns"),
    ],
)
def test_wrong_rows_on_one_rank_are_refused_on_all(mpi, library, change, text):
    rows, last = grid(mpi), mpi.size - 1
    if mpi.rank == last:
        rows = replace(rows, **{name: make(rows) for name, make in change.items()})
    with pytest.raises(InputError, match=rf"rows of rank {last}: .*{text}"):
        library.part_kway(mpi, rows, 2)
