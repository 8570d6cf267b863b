"""Full-batch training of graph neural networks on graphs larger than one machine, over MPI.

    import hpcgnn

    def main(comm):                                         # on every rank of 4
        graph = hpcgnn.load_partition("graph.p4.h5", comm)
        model = Net(128, 64)                                # a torch module, called (graph, x)
        task = hpcgnn.tasks.find_task(graph)    # classes or values, as the labels are
        hpcgnn.Trainer(graph, model, task, run_dir="runs/net", epochs=100).run()

    hpcgnn.run(main)

These names are imported on first use: `import hpcgnn` loads neither torch nor MPI. After it, an
uncaught exception ends a job of several ranks.
"""

from __future__ import annotations

import importlib
import sys

from hpcgnn.comm.liveness import early
from hpcgnn.version import __version__

TYPE_CHECKING = False  # `typing` takes as long to load as all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hpcgnn import nn, pyparmetis, tasks
    from hpcgnn.nn.gradients import sum_gradients
    from hpcgnn.nn.norm import convert_norms
    from hpcgnn.partition.load import load_partition
    from hpcgnn.partition.pipeline import partition_graph
    from hpcgnn.storage.exchange.dgl import from_dgl
    from hpcgnn.storage.exchange.networkx import from_networkx
    from hpcgnn.storage.exchange.pyg import from_pyg, to_pyg
    from hpcgnn.storage.exchange.scipy import from_scipy
    from hpcgnn.train.predict import predict
    from hpcgnn.train.trainer import Trainer

__all__ = [
    "Trainer",
    "__version__",
    "convert_norms",
    "from_dgl",
    "from_networkx",
    "from_pyg",
    "from_scipy",
    "load_partition",
    "nn",
    "partition_graph",
    "predict",
    "pyparmetis",
    "run",
    "sum_gradients",
    "tasks",
    "to_pyg",
]

_MODULES = {
    "nn": "hpcgnn.nn",
    "pyparmetis": "hpcgnn.pyparmetis",
    "tasks": "hpcgnn.tasks",
}
_OBJECTS = {
    "Trainer": "hpcgnn.train.trainer",
    "convert_norms": "hpcgnn.nn.norm",
    "from_dgl": "hpcgnn.storage.exchange.dgl",
    "from_networkx": "hpcgnn.storage.exchange.networkx",
    "from_pyg": "hpcgnn.storage.exchange.pyg",
    "from_scipy": "hpcgnn.storage.exchange.scipy",
    "load_partition": "hpcgnn.partition.load",
    "partition_graph": "hpcgnn.partition.pipeline",
    "predict": "hpcgnn.train.predict",
    "sum_gradients": "hpcgnn.nn.gradients",
    "to_pyg": "hpcgnn.storage.exchange.pyg",
}


def run(main: Callable[[Any], int | None], *, timeout: float | None = None) -> None:
    """Start MPI and run `main(comm)` on every rank of mpiexec or srun; one rank without them.

    A rank that fails ends the job on all ranks, in one line on stderr (after a traceback if the
    error is unexpected). Memory is allocated as `hpcgnn.system.set_up` describes.

    Args:
        main: returns None or 0 on success, else the exit status of the job.
        timeout: seconds to wait for another rank (default: HPCGNN_TIMEOUT, or 600).

    Raises:
        InputError: a script named by --model calls it while it is loaded.
        SystemExit: with the job's status, if that is not 0.
    """
    from hpcgnn import system
    from hpcgnn.comm import world
    from hpcgnn.loading import refuse_while_loading

    refuse_while_loading("hpcgnn.run")
    system.set_up()
    status = world.run(lambda comm: main(comm) or 0, timeout=timeout)
    if status:
        sys.exit(status)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _OBJECTS:
        return getattr(importlib.import_module(_OBJECTS[name]), name)
    raise AttributeError(f"module 'hpcgnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


early.watch()  # the other ranks would wait for a script that fails before it has a graph
