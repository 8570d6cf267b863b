"""The command `hpcgnn` in which one rank sends itself a signal at a chosen place.

    mpiexec -n 2 python -m tests.faults.target FAULT.json train graph.p2.h5 ...

FAULT.json: place, visit (at which of its calls, from 1), delay in seconds after that, rank,
signal, injected (a file that is made just before).
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# place: module, class or "", function, text that must be in the argument `where`.
PLACES = {
    "start": ("hpcgnn.comm.world", "", "run", ""),
    "running": ("hpcgnn.comm.communicator", "Communicator", "_start_heartbeat", ""),
    "exchange": ("hpcgnn.comm.communicator", "Communicator", "alltoallv", ""),
    "forward": ("hpcgnn.comm.exchange", "Exchange", "__init__", "forward"),
    "backward": ("hpcgnn.comm.exchange", "Exchange", "__init__", "backward"),
    "all-reduce": ("hpcgnn.comm.background", "BackgroundSums", "finish", ""),
    "save": ("hpcgnn.train.checkpoint.store", "CheckpointStore", "save", ""),
    "write": ("os", "", "pwrite", ""),
    "sync": ("os", "", "fsync", ""),
    "publish": ("hpcgnn.storage.write.atomic", "", "publish", ""),
    "journal": ("hpcgnn.train.journal", "Journal", "write", ""),
}


class Fault:
    """Injects a fault at the `visit`-th call of a place."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault, self.calls = fault, 0

    def arm(self) -> None:
        module, owner, name, text = PLACES[self.fault["place"]]
        holder: Any = importlib.import_module(module)
        holder = getattr(holder, owner) if owner else holder
        setattr(holder, name, self.watch(getattr(holder, name), text))

    def watch(self, function: Callable[..., Any], text: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **options: Any) -> Any:
            if text in str(options.get("where", "")):
                self.calls += 1
                if self.calls == self.fault["visit"]:
                    self.inject()
            return function(*args, **options)

        return watched

    def inject(self) -> None:
        if self.fault["delay"] > 0:
            timer = threading.Timer(self.fault["delay"], self.send_signal)
            timer.daemon = True
            timer.start()
        else:
            self.send_signal()

    def send_signal(self) -> None:
        Path(self.fault["injected"]).touch()
        os.kill(os.getpid(), signal.Signals[self.fault["signal"]])


def main() -> int:
    fault = json.loads(Path(sys.argv[1]).read_text())
    if int(os.environ.get("PMI_RANK", 0)) == fault["rank"]:
        Fault(fault).arm()
    from hpcgnn.cli.main import main as hpcgnn

    return hpcgnn(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
