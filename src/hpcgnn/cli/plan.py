"""`hpcgnn plan`: say before a job is submitted whether it will fit."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcgnn.errors import HpcgnnError, InputError, say
from hpcgnn.models.demands import note
from hpcgnn.settings import check_range, parse_size
from hpcgnn.train.config import Config, add_options, resolve
from hpcgnn.train.plan.estimate import (
    IMPORTS,
    MOST_RANKS,
    Shape,
    bytes_per_epoch,
    estimate,
    smallest_ranks,
)
from hpcgnn.train.plan.file_shapes import content_of_file, shapes_of_file

PARALLEL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "graph", type=Path, metavar="FILE.h5", help="a partition file, or graph.h5 with --ranks"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="P", help="default: as many as the file has parts, or 1"
    )
    parser.add_argument(
        "--memory-per-rank",
        metavar="SIZE",
        help="what a rank may use, such as 30GiB; status 1 if the estimate is above it",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--config", default=None, metavar="FILE.toml", help="settings as TOML")
    add_options(parser)


def run(args: argparse.Namespace, comm: None) -> int:
    config = resolve(args, args.config)
    if config.model.own:
        raise InputError("plan knows the built-in models only", value=config.model.kind)
    if args.ranks is not None:
        check_range("--ranks", args.ranks, 1, MOST_RANKS)
    limit = None if args.memory_per_rank is None else parse_size(args.memory_per_rank)
    shape, shape_at, counts = shapes_of_file(args.graph, args.ranks, config)
    if shape.ranks > counts.num_nodes:
        raise InputError(
            f"--ranks {shape.ranks} would leave parts of {counts.num_nodes} nodes empty: ask for "
            f"at most {counts.num_nodes}",
            file=args.graph,
        )
    content = _describe(shape, config)
    content["unused"] = content_of_file(args.graph).unused(config.model)
    # On a GPU the imports stay in the host's memory.
    imports = 0 if config.device.kind == "cuda" else IMPORTS
    content["imports_bytes"] = imports
    content["total_bytes"] = content["peak_bytes"] + imports
    fits = limit is None or content["total_bytes"] <= limit
    if limit is not None:
        start = 1 if fits else shape.ranks + 1
        needed = smallest_ranks(shape_at, config, limit - imports, start)
        needed = None if needed is None or needed > counts.num_nodes else needed
        if fits:
            needed = min(needed or shape.ranks, shape.ranks)
        content |= {"limit_bytes": limit, "fits": fits, "smallest_ranks": needed}
    if args.json:
        print(json.dumps(content, indent=1))
    else:
        say(*_text(content, config))
    if not fits:
        raise HpcgnnError(_refusal(content), file=args.graph)
    return 0


def _describe(shape: Shape, config: Config) -> dict[str, Any]:
    """The estimate as plain numbers: `shape`, `memory_bytes` by purpose, `peak_bytes` and more."""
    memory = estimate(shape, config)
    return {
        "shape": asdict(shape),
        "memory_bytes": asdict(memory),
        "peak_bytes": memory.peak,
        "bytes_sent_per_epoch": bytes_per_epoch(shape, config),
    }


def _text(content: dict[str, Any], config: Config) -> list[str]:
    shape, model = content["shape"], config.model
    lines = [
        f"{model.kind}, {model.layers} layers of {model.hidden}, on {shape['ranks']} ranks; "
        f"largest part: {shape['nodes']:,} nodes, {shape['edges']:,} edges"
        + ("" if shape["halo"] is None else f", {shape['halo']:,} halo nodes")
    ]
    rows = {name.replace("_", " "): size for name, size in content["memory_bytes"].items()}
    rows |= {"peak above imports": content["peak_bytes"], "with imports": content["total_bytes"]}
    lines += [f"  {name:<20}{size / 1e6:>14,.1f} MB" for name, size in rows.items()]
    sent = content["bytes_sent_per_epoch"]
    if sent is None:
        lines.append("  sent per epoch: give a partition file to know")
    else:
        lines.append(f"  sent per epoch      {sent / 1e6:>14,.1f} MB at most, all ranks together")
    if content["unused"]:
        lines.append(f"  {note(content['unused'], config.model)}")
    if "fits" in content:
        needed = content["smallest_ranks"]
        lines.append(
            f"  fits into {content['limit_bytes'] / 1e6:,.0f} MB per rank: "
            f"{'yes' if content['fits'] else 'no'}; fewest ranks: {needed or 'none'}"
        )
    return lines


def _refusal(content: dict[str, Any]) -> str:
    needed = content["smallest_ranks"]
    advice = f"use at least {needed} ranks" if needed else "no number of ranks would fit"
    return (
        f"does not fit: about {content['total_bytes'] / 1e6:,.0f} MB per rank of "
        f"{content['limit_bytes'] / 1e6:,.0f} MB on {content['shape']['ranks']} ranks; {advice}"
    )
