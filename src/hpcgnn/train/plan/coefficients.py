"""Coefficients of `estimate` by model, measured in runs."""

IMPORTS = 310_000_000  # resident bytes with Python, torch and MPI loaded, on CPUs
SPARSE = 15_000_000  # more with sparse features: left over from making their transpose
BASE, PEER, MOST_PEERS = 4_000_000, 500_000, 60_000_000  # MPI needs some per other rank
KEPT = {
    "sage": 1,
    "gcn": 1,
    "gat": 2,
    "gatv2": 4,
    "gin": 3,
    "rgcn": 1,
    "appnp": 1,
    "sgc": 1,
    "dagnn": 1,
    "transformer": 6,
    "gine": 4,
    "pna": 24,
    "rgat": 4,
    "deeper": 5,
}
BACKWARD = {
    "sage": 1.0,
    "gcn": 1.6,
    "gat": 2.2,
    "gatv2": 3.5,
    "rgcn": 4.0,
    "appnp": 1.5,
    "dagnn": 1.5,
}  # times H, for a middle layer; others 2.5
FIRST, FIRST_IN_PLACE = 1.6, 0.6  # for a first layer with a cached sum: no sum in backward
NOT_IN_PLACE = 2.4  # for sage, if gradients are not written over kept arrays
APART = 2.75  # for gat, if gradients are computed one head at a time
APART_LAST = (2.5, 2.0)  # LAST in that case
OUTPUTS = {"gcn": 0, "rgcn": 1}  # times C, added to it; others 2
LAST = {"gat": (1.4, 3.0), "gatv2": (0.8, 5.7)}  # times H and all heads' outputs, in the last layer
WIDE = 2.1  # times H there, plus outputs, for gat if the layer before keeps its product
LAST_SUM = {"sage": (0.0, 4.0), "gcn": (1.0, 2.5)}  # times H and C, for a last layer that sums
SELF_LOOPS = ("gat", "gatv2")  # these keep their own edge lists, both ways
ALONE = 3  # times the outputs, if heads are computed one at a time
READ_IN_PLACE = ("gat", "gatv2", "rgcn")  # their first layer keeps its input without a copy
FORWARD = {
    "sage": 2.5,
    "gcn": 2.5,
    "gatv2": 4,
    "transformer": 6,
}  # arrays in a layer's forward pass; others 3
EDGE_SCRATCH = {"gcn": 15, "appnp": 15, "sgc": 15, "dagnn": 15, "rgcn": 75}  # bytes per edge
MESSAGES = ("transformer", "gine", "pna", "rgat", "deeper")  # in plain torch, in pieces of edges
PIECES = 60_000_000  # bytes of scratch of their messages
SUMS = ("sage", "gcn", "gin", "sgc", "appnp", "dagnn")  # these return nothing for messages
SUMS_IN_SAR = ("gat", "rgcn")  # nor do these, in mode `sar`
LONGEST_LIST = 1.25  # largest number of halo rows from one rank, over the mean
PAIR_BYTES, PAIRED_EDGE_BYTES = 200, 14  # R-GCN, both ways: per pair (relation, row); per edge
