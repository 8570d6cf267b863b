"""`hpcgnn report`: summarise a run directory, or compare several."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hpcgnn.errors import say
from hpcgnn.report.comparison import as_table, compare
from hpcgnn.report.summary import as_text, summarise

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, nargs="+", metavar="RUN_DIR", help="several: a table of all"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, of several runs a list"
    )


def run(args: argparse.Namespace, comm: None) -> int:
    if len(args.run_dir) > 1:
        runs = compare(args.run_dir)
        if args.json:
            print(json.dumps(runs, indent=1))
        else:
            say(*as_table(runs))
        return 0
    content = summarise(args.run_dir[0])
    if args.json:
        print(json.dumps(content, indent=1))
    else:
        say(*as_text(content))
    return 0
