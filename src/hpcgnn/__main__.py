"""The command `hpcgnn`, also as `python -m hpcgnn`."""

from __future__ import annotations

import gc
import signal
import sys

TYPE_CHECKING = False  # what is loaded here delays the handlers of signals
if TYPE_CHECKING:
    from typing import Any

_TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the command and return its exit status; a signal while it is loaded ends it silently."""
    usual: dict[signal.Signals, Any] = dict.fromkeys(_TAKEN, signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    taken = [number for number in _TAKEN if signal.getsignal(number) is usual[number]]
    _handle(taken, signal.SIG_DFL)
    from hpcgnn.comm.launcher import end_by_signal, is_hydra, launched

    several = is_hydra() or launched()[1] > 1
    if several:
        import socket  # noqa: F401  # whole before a handler needs it

        _handle(taken, end_by_signal)  # also after `run`, where another copy may arrive
    from hpcgnn.cli.main import main as run

    if not several:
        for number in taken:
            signal.signal(number, usual[number])
    try:
        return run()
    finally:
        _handle(taken, signal.SIG_IGN)  # all is done: Python's end must not change the status
        gc.freeze()  # nor search PyTorch's modules for garbage, which takes 0.3 s


def _handle(numbers: list[signal.Signals], handler: Any) -> None:
    for number in numbers:
        signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
