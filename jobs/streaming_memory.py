"""Memory of `partition --method streaming` while it assigns parts, before the layout.

    mpiexec -n RANKS python jobs/streaming_memory.py PARTS GRAPH.h5...

A line per graph: the peak of the rank that uses most, from before the row pointers are read, less
what was resident then; and what the arrays that stay take of it, in bytes per node and rank.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition import simple
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.kaminpar_process import peak
from hpcgnn.partition.pipeline import slab_bounds
from hpcgnn.partition.problem import PartitionOptions, Problem
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.system import resident_memory, set_up


def measure(comm: Communicator, path: str, num_parts: int) -> None:
    with GraphFile(path) as graph:
        low, high = slab_bounds(graph, comm.rank, comm.size)
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        indptr = graph.read_indptr(low, high)
        indptr -= indptr[0]
        options = PartitionOptions()
        cost = options.node_cost + options.edge_cost * np.diff(indptr)
        edges = SlabEdges(low, high, indptr, graph.read_sources)
        train = np.zeros(high - low, bool)
        problem = Problem(edges, graph.num_nodes, num_parts, cost, train, options)
        owner = simple.streaming_parts(comm, problem)
        stays = sum(array.nbytes for array in (indptr, cost, train, owner))
        used = comm.allreduce(peak() - before, "max")
        stays = comm.allreduce(stays, "max")
    if comm.rank == 0:
        print(
            f"{Path(path).stem:16} {graph.num_nodes:>10,} nodes {graph.num_edges:>12,} edges "
            f"{comm.size} ranks: {used / 2**20:7.1f} MiB a rank, {used / graph.num_nodes:6.1f} "
            f"bytes per node; arrays that stay {stays / graph.num_nodes:5.1f}",
            flush=True,
        )


def main() -> None:
    set_up()
    comm = Communicator(MPI.COMM_WORLD)
    for path in sys.argv[2:]:
        measure(comm, path, int(sys.argv[1]))


if __name__ == "__main__":
    main()
