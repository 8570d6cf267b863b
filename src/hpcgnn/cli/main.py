"""The command `hpcgnn`: finds the verb, reads its options, runs it."""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import NoReturn

from hpcgnn.errors import InputError, say

VERBS = {
    "generate": "make a random graph with communities, or an R-MAT graph",
    "convert": "turn source files into graph.h5",
    "partition": "cut a graph into parts, one per rank",
    "train": "train a model on all ranks",
    "predict": "apply a checkpoint to every node",
    "info": "say what a file holds",
    "plan": "say before a job is submitted whether it will fit",
    "report": "summarise a run directory",
    "doctor": "check this installation",
    "bench": "measure kernels beside peers",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` lists the options")


def _parser(verb: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    from hpcgnn import __version__

    parser = _Parser(prog="hpcgnn", description="Full-batch graph neural networks over MPI.")
    parser.add_argument("--version", action="version", version=f"hpcgnn {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, help_line in VERBS.items():
        sub = verbs.add_parser(name, help=help_line, description=help_line)
        if name == verb and module is not None:
            module.add_arguments(sub)
            if module.PARALLEL is not False:
                sub.add_argument(
                    "--timeout", type=float, metavar="SECONDS",
                    help="longest wait for another rank (default: HPCGNN_TIMEOUT, or 600)",
                )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status (0, or the error's `exit_status`)."""
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv and argv[0] in VERBS else None
    from hpcgnn.comm import world

    try:
        module = importlib.import_module(f"hpcgnn.cli.{verb}") if verb else None
        args = _parser(verb, module).parse_args(argv)
    except InputError as error:
        if world.launched()[0] == 0:
            say(f"hpcgnn: error: {error}", file=sys.stderr)
        return error.exit_status
    if module is None:
        return 0
    with module.listen(args) if hasattr(module, "listen") else nullcontext():
        return world.run(
            lambda comm: module.run(args, comm),
            parallel=module.PARALLEL,
            timeout=getattr(args, "timeout", None),
        )


if __name__ == "__main__":
    sys.exit(main())
