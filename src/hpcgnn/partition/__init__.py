"""Partitioning of a graph: methods, bindings of libraries, and the layout of a part."""
