"""Construction of parts from the owners of nodes: blocks, send lists, node columns."""
