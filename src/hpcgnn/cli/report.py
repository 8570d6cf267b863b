"""`hpcgnn report`: summarise a run directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hpcgnn.errors import say
from hpcgnn.report.summary import as_text, summarise

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace, comm: None) -> int:
    content = summarise(args.run_dir)
    if args.json:
        print(json.dumps(content, indent=1))
    else:
        say(*as_text(content))
    return 0
