"""Run several commands of hpcgnn in one job, so that PyTorch is loaded only once.

mpiexec -n 2 python -m tests.faults.several COMMANDS.json    (a list of lists of arguments)
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from hpcgnn.comm import world
from hpcgnn.comm.communicator import Communicator


def main() -> int:
    commands = json.loads(Path(sys.argv[1]).read_text())

    def each(comm: Communicator) -> int:
        for verb, *arguments in commands:
            module = importlib.import_module(f"hpcgnn.cli.{verb}")
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            module.run(parser.parse_args(arguments), comm)
        return 0

    return world.run(each)


if __name__ == "__main__":
    sys.exit(main())
