"""Full-batch training of graph neural networks on graphs larger than one machine, over MPI.

    import hpcgnn
    graph = hpcgnn.load_partition("graph.p4.h5")     # on every rank of 4
    layer = hpcgnn.nn.SAGEConv(128, 64)
    y_NF = layer(graph, graph.features)

What is named here is imported at its first use, so that `import hpcgnn` loads neither torch nor
MPI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpcgnn import system
from hpcgnn.version import __version__

if TYPE_CHECKING:
    from hpcgnn import nn
    from hpcgnn.storage.read.load import load_partition

__all__ = ["__version__", "load_partition", "nn"]

system.set_up()


def __getattr__(name: str) -> Any:
    if name == "load_partition":
        return importlib.import_module("hpcgnn.storage.read.load").load_partition
    if name == "nn":
        return importlib.import_module("hpcgnn.nn")
    raise AttributeError(f"module 'hpcgnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
