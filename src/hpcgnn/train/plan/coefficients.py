"""What measured runs of each model take, in the terms of `estimate`."""

IMPORTS = 310_000_000  # resident once Python, torch and MPI are loaded, on CPUs
SPARSE = 15_000_000  # more where features are sparse: what making their transpose leaves behind
BASE, PEER, MOST_PEERS = 4_000_000, 500_000, 60_000_000  # MPI takes some for each other rank
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
}  # times H, of a layer between; others 2.5
FIRST, FIRST_IN_PLACE = 1.6, 0.6  # of a first layer whose sum is kept: no sum goes back
NOT_IN_PLACE = 2.4  # of sage, where gradients are not written over what was kept
APART = 2.75  # of gat, where the gradients of one head come after those of the other
APART_LAST = (2.5, 2.0)  # LAST there
OUTPUTS = {"gcn": 0, "rgcn": 1}  # times C, beside it; others 2
LAST = {"gat": (1.4, 3.0), "gatv2": (0.8, 5.7)}  # times H and all heads' outputs, in the last one's
WIDE = 2.1  # times H there, of gat where the layer before keeps its product, and all outputs
LAST_SUM = {"sage": (0.0, 4.0), "gcn": (1.0, 2.5)}  # times H and C, in that of the last layer
SELF_LOOPS = ("gat", "gatv2")  # which keep lists of edges of their own, both ways
ALONE = 3  # times the outputs, where heads are computed one after the other
READ_IN_PLACE = ("gat", "gatv2", "rgcn")  # whose first layer keeps its input, and no copy of it
FORWARD = {
    "sage": 2.5,
    "gcn": 2.5,
    "gatv2": 4,
    "transformer": 6,
}  # arrays of a layer's forward pass; others 3
EDGE_SCRATCH = {"gcn": 15, "appnp": 15, "sgc": 15, "dagnn": 15, "rgcn": 75}  # bytes per edge
MESSAGES = ("transformer", "gine", "pna", "rgat", "deeper")  # in plain torch, a few edges at a time
PIECES = 60_000_000  # scratch of their messages
SUMS = ("sage", "gcn", "gin", "sgc", "appnp", "dagnn")  # which send nothing back with messages
SUMS_IN_SAR = ("gat", "rgcn")  # nor do these in mode `sar`
LONGEST_LIST = 1.25  # halo rows from the rank that most come from, over the mean
PAIR_BYTES, PAIRED_EDGE_BYTES = 200, 14  # for R-GCN, both ways: a pair of a relation and a row
