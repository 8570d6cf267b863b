"""Edges that are two ends of 4 bytes each and nothing else."""

from __future__ import annotations

import ctypes
from ctypes import c_int64
from functools import cache

import numpy as np

from hpcgnn.native import address, open_library
from hpcgnn.storage.fingerprint import LIBRARY

ENDS = ("source", "destination")
PAIR = np.dtype([(name, np.int32) for name in ENDS])


def pack(sources: np.ndarray, destinations: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write int64 ends, cut to 4 bytes, into the PAIR records `out`; return int64 [2, 2] bounds.

    The bounds are the lowest and highest source, and those of the destinations; the caller checks
    that they fit.
    """
    if sources.strides != destinations.strides or sources.strides[0] % sources.itemsize:
        sources, destinations = sources.copy(), destinations.copy()
    bounds = np.empty((2, 2), np.int64)
    _library().hpcgnn_pack(
        address(sources),
        address(destinations),
        c_int64(sources.strides[0] // sources.itemsize),
        c_int64(sources.shape[0]),
        address(out),
        address(bounds),
    )
    return bounds


def mark(edges: np.ndarray, there: np.ndarray) -> int:
    """Set the bools `there` at both ends of the edges; return how many were not set."""
    if edges.dtype == PAIR:
        nodes = np.ascontiguousarray(edges).view(np.int32)
    else:
        nodes = np.concatenate([edges[name] for name in ENDS])
    return _library().hpcgnn_mark(
        address(nodes), c_int64(nodes.itemsize == 8), c_int64(nodes.shape[0]), address(there)
    )


def unpack(edges: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the int32 sources of PAIR records in ascending order of the destinations, and counts.

    The int64 counts are the edges into each of the nodes `first` .. `last` - 1, which are all.
    """
    edges = np.ascontiguousarray(edges)
    sources, counts = np.empty(edges.shape[0], np.int32), np.zeros(last - first, np.int64)
    _library().hpcgnn_unpack(
        address(edges),
        c_int64(edges.shape[0]),
        c_int64(first),
        address(sources),
        address(counts),
    )
    return sources, counts


@cache
def _library() -> ctypes.CDLL:
    library = open_library(LIBRARY)
    library.hpcgnn_mark.restype = c_int64
    return library
