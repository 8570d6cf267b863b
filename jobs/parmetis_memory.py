"""Memory of ParMETIS besides the graph it is given; `partition/problem.py` was fitted to it.

    mpiexec -n RANKS python jobs/parmetis_memory.py PARTS [--narrow] GRAPH.h5...

A line per graph and width of its integers (--narrow: 32 bits alone), over all ranks: the peak
during the call less what was resident before, in bytes per neighbour, and what the model says.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import SlabEdges, neighbours
from hpcgnn.partition.kaminpar_process import peak
from hpcgnn.partition.pipeline import slab_bounds
from hpcgnn.partition.problem import parmetis_bytes
from hpcgnn.partition.pyparmetis import binding, builds
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.system import resident_memory, set_up


def measure(comm: Communicator, path: str, num_parts: int, narrow: bool) -> None:
    with GraphFile(path) as graph:
        low, high = slab_bounds(graph, comm.rank, comm.size)
        indptr = graph.read_indptr(low, high)
        library = builds.load(comm, narrow=narrow)
        edges = SlabEdges(low, high, indptr - indptr[0], graph.read_sources)
        bounds = np.append(0, comm.allgather(high))
        xadj, adjncy = neighbours(comm, edges, bounds, np.dtype(library.integer).type)
        weight = (10 + np.diff(indptr)).astype(library.integer)
        rows = binding.Rows(bounds, xadj, adjncy, weight, expendable=True)
        count = comm.allreduce(len(adjncy))
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        began = time.monotonic()
        with comm.blocking_call("ParMETIS"):
            library.part_kway(comm.mpi, rows, num_parts)
        seconds = time.monotonic() - began
        used = comm.allreduce(peak() - before)
        degree = np.diff(indptr)
        sums = comm.allreduce(np.array([degree.sum(), (degree**2).sum()]))
        skew = sums[1] * graph.num_nodes / sums[0] ** 2
        model = comm.size * parmetis_bytes(count, skew, comm.size, library.index_bytes)
    if comm.rank == 0:
        print(
            f"{Path(path).stem:20} {graph.num_nodes:>10,} nodes {count:>12,} neighbours "
            f"skew {skew:5.1f} {comm.size} ranks {num_parts} parts {8 * library.index_bytes} bits: "
            f"{used / 2**20:8,.0f} MiB, {used / count:6.1f} per neighbour, "
            f"model {model / max(used, 1):5.2f} of it, {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    set_up()
    comm = Communicator(MPI.COMM_WORLD)
    parts, *paths = (word for word in sys.argv[1:] if word != "--narrow")
    for path in paths:
        for narrow in (True,) if "--narrow" in sys.argv else (True, False):
            measure(comm, path, int(parts), narrow)


if __name__ == "__main__":
    main()
