"""Random graphs generated slab by slab, the same on any number of ranks."""
