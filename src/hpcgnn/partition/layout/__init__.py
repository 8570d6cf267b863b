"""From owners of nodes to parts: blocks, send lists, node columns."""
