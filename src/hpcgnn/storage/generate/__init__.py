"""Random graphs made slab by slab: the same graph on any number of ranks."""
