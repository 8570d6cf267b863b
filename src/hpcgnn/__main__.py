"""The command `hpcgnn`, also as `python -m hpcgnn`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command and return its exit status; Ctrl-C while it is loaded ends it silently."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hpcgnn.cli.main import main as run  # only now: an interrupt would show a traceback

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
