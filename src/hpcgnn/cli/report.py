"""`hpcgnn report`: show what run directories hold, on the terminal and as a page with figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hpcgnn.cli.file_name import file_name
from hpcgnn.errors import InputError, say, warn
from hpcgnn.report import summary
from hpcgnn.report.run import RunFiles, read_run
from hpcgnn.report.summary import as_text, summarise

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, nargs="+", metavar="RUN_DIR", help="one run, or several to compare"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per run, without a page"
    )
    parser.add_argument("--text", action="store_true", help="print the text only, without a page")
    parser.add_argument(
        "-o",
        "--out",
        type=_page_or_folder,
        metavar="OUT",
        help="folder for the page and its figures, or a file name ending in .html (default: "
        "RUN_DIR/report, which is replaced; ./report for several runs)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing page")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def _page_or_folder(text: str) -> Path:
    return file_name(text) if text.rstrip("/").endswith(".html") else Path(text)


def run(args: argparse.Namespace, comm: None) -> int:
    runs = [read_run(folder) for folder in args.run_dir]
    if args.json:
        content = [summarise(run) for run in runs]
        print(json.dumps(content[0] if len(runs) == 1 else content, indent=1))
        return 0
    say(*(as_text(summarise(runs[0])) if len(runs) == 1 else summary.comparison(runs)))
    if not args.text:
        _write_page(args, runs)
    return 0


def _write_page(args: argparse.Namespace, runs: list[RunFiles]) -> None:
    from hpcgnn.report.page import write_report

    begun = [run for run in runs if run.records]
    if not begun:
        where = runs[0].folder / "metrics.jsonl"
        if args.out is not None or args.open:
            raise InputError("holds no epoch yet, so there is no page of it", file=where)
        warn("hpcgnn: note: no page: no epoch has ended yet")
        return
    own = args.out is None and len(runs) == 1
    folder = args.out or (runs[0].folder / "report" if own else Path("report"))
    try:
        page = write_report(begun, folder, force=args.force or own)
    except InputError as error:
        if args.out is not None or args.open or "matplotlib" not in str(error):
            raise
        warn(f"hpcgnn: note: no page: {error}")
        return
    say(f"page: {page}")
    if args.open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            warn("hpcgnn: note: no browser was found to show it")
