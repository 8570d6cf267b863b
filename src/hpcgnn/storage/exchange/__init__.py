"""Graphs of other libraries in memory, to graph.h5 and back."""
