"""Cutting a graph into parts: methods, bindings, and the layout of a part."""
