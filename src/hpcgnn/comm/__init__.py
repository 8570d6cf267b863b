"""Everything that knows about MPI."""
