"""Conversion between in-memory graphs of other libraries and graph.h5."""
