"""ParMETIS through its own C interface, on the ranks of any mpi4py communicator.

    from hpcgnn import pyparmetis
    rows = pyparmetis.Rows(vtxdist, xadj, adjncy, vertex_weights, edge_weights=edge_weights)
    part = pyparmetis.load(comm).part_kway(comm, rows, num_parts=4)

`Rows` are a rank's rows of a symmetric graph without self-loops, in ParMETIS's distributed form.
"""

from hpcgnn.partition.pyparmetis.binding import ParMETIS, Rows
from hpcgnn.partition.pyparmetis.builds import find, load, open_library

__all__ = ["ParMETIS", "Rows", "find", "load", "open_library"]
