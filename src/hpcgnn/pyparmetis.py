"""ParMETIS on any mpi4py communicator, by a short name: see `hpcgnn.partition.pyparmetis`."""

from hpcgnn.partition.pyparmetis import ParMETIS, Rows, find, load, open_library

__all__ = ["ParMETIS", "Rows", "find", "load", "open_library"]
