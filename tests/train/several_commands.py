"""`python -m tests.train.several_commands VERB ... + VERB ...`: several commands in one job."""

from __future__ import annotations

import sys

from hpcgnn.cli.main import main

BETWEEN = "+"


def run(argv: list[str]) -> int:
    """Run one command after the other; return the status of the first that fails."""
    while argv:
        end = argv.index(BETWEEN) if BETWEEN in argv else len(argv)
        if status := main(argv[:end]):
            return status
        argv = argv[end + 1 :]
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
