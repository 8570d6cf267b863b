"""The process that runs KaMinPar: `python -m hpcgnn.partition.kaminpar_process FOLDER`.

FOLDER holds the request (request.json) and the graph; the parts are written there, int32 `[nodes]`.
It uses neither MPI nor torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from hpcgnn.system import most_resident_memory

REQUEST, GRAPH, RESULT, OUTPUT = "request.json", "graph.parhip", "parts.npy", "output.txt"
PEAK = "peak.txt"  # peak memory of the process in bytes


def main(folder: Path) -> None:
    """Read the request, cut the graph and write the result."""
    import kaminpar

    request = json.loads((folder / REQUEST).read_text())
    kaminpar.reseed(request["seed"])
    graph = kaminpar.load_graph(
        str(folder / GRAPH), kaminpar.GraphFileFormat.PARHIP, compress=request["compress"]
    )
    solver = kaminpar.KaMinPar(request["threads"], kaminpar.context_by_name(request["context"]))
    part = solver.compute_partition(graph, request["parts"], request["imbalance"])
    np.save(folder / RESULT, np.fromiter(part, np.int32, len(part)))
    (folder / PEAK).write_text(str(most_resident_memory()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
