"""How messages are moved between a rank's memory and MPI."""
