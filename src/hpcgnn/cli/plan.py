"""`hpcgnn plan`: say before a job is submitted whether it will fit."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.config import Config, add_options, check_range, parse_size, resolve
from hpcgnn.errors import HpcgnnError, InputError, say
from hpcgnn.models.demands import Content, Facts, check_host_features, note
from hpcgnn.storage.read.graph_file import read_counts
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import GRAPH, PARTITION, Counts
from hpcgnn.train.open import check_training
from hpcgnn.train.plan.estimate import (
    IMPORTS,
    MOST_RANKS,
    Shape,
    bytes_per_epoch,
    estimate,
    smallest_ranks,
)

HELP = "say before a job is submitted whether it will fit"
PARALLEL = False

_IMBALANCE = 1.15  # nodes of the largest part over the mean, where no partition tells


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
    if args.ranks is not None:
        check_range("--ranks", args.ranks, 1, MOST_RANKS)
    limit = None if args.memory_per_rank is None else parse_size(args.memory_per_rank)
    shape, shape_at, counts = _shapes(args.graph, args.ranks, config)
    if shape.ranks > counts.num_nodes:
        raise InputError(
            f"--ranks {shape.ranks} would leave parts of {counts.num_nodes} nodes empty: ask for "
            f"at most {counts.num_nodes}",
            file=args.graph,
        )
    content = describe(shape, config)
    content["unused"] = _content(args.graph).unused(config)
    # On a GPU the imports stay in the host's memory.
    imports = 0 if config.device == "cuda" else IMPORTS
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


def describe(shape: Shape, config: Config) -> dict[str, Any]:
    """The estimate as plain numbers: `shape`, `memory_bytes` by purpose, `peak_bytes` and more."""
    memory = estimate(shape, config)
    return {
        "shape": asdict(shape),
        "memory_bytes": asdict(memory),
        "peak_bytes": memory.peak,
        "bytes_sent_per_epoch": bytes_per_epoch(shape, config),
    }


def _shapes(path: Path, ranks: int | None, config: Config) -> tuple[Shape, partial[Shape], Counts]:
    """The shape of the largest part, `shape_at(P)` for any number of ranks, and the graph's counts.

    Raises:
        InputError: no graph and no partition, a damaged header, or a graph that can't be trained
            on with these settings.
    """
    with Reader(path, None) as reader:
        kind = reader.text("format")
        if kind not in (GRAPH, PARTITION):
            raise InputError("is neither a graph nor a partition", file=path, value=kind)
        counts = read_counts(reader)
        symmetric = True
        stored = None
        if kind == PARTITION:
            symmetric = bool(reader.integer("symmetric", 0, 1))
            prefixes = [f"parts/{part}/" for part in reader.names("parts")]
        else:
            prefixes = [""]
        _check(config, counts, reader, prefixes[0])
        if any(reader.is_group(f"{prefix}nodes/features") for prefix in prefixes):
            sizes = {entry["name"]: entry["shape"][0] for entry in reader.walk() if entry["shape"]}
            stored = sum(sizes.get(f"{prefix}nodes/features/indices", 0) for prefix in prefixes)
        weighted = reader.has(f"{prefixes[0]}{'in' if prefixes[0] else 'edges'}/weight")
        shape_at = partial(_even, counts, stored, _edge_bytes(counts, weighted), symmetric)
        if kind == GRAPH:
            return shape_at(ranks or 1), shape_at, counts
        parts = reader.integer("num_parts", 1, MOST_RANKS)
        if ranks not in (None, parts):
            return shape_at(ranks or 1), shape_at, counts
        return _largest(reader, shape_at(parts), parts), shape_at, counts


def _check(config: Config, counts: Counts, reader: Reader, prefix: str) -> None:
    """Refuse what `train` would."""
    kinds = {
        "sparse": reader.is_group(f"{prefix}nodes/features"),
        "dense": counts.num_features > 0,
        "typed": reader.is_group(f"{prefix}nodes/typed_features"),
    }
    facts = Facts(
        features=next((kind for kind in ("typed", "sparse", "dense") if kinds[kind]), "none"),
        labels=reader.has(f"{prefix}nodes/labels") and counts.num_splits > 0,
        multilabel=bool(counts.multilabel),
        num_outputs=counts.num_classes,
        num_relations=counts.num_relations,
    )
    try:
        check_training(config, facts)
    except InputError as error:
        raise InputError(str(error), file=reader.path) from None
    if config.split >= counts.num_splits:
        raise InputError(
            f"has {counts.num_splits} splits, none with this number",
            file=reader.path,
            value=config.split,
        )
    if config.device == "cuda" and config.features_on == "host" and facts.features == "dense":
        check_host_features(config)


def _content(path: Path) -> Content:
    """What the file holds, by its header and names."""
    with Reader(path, None) as reader:
        counts = read_counts(reader)
        partition = reader.text("format") == PARTITION
        parts = [f"parts/{part}/" for part in reader.names("parts")] if partition else [""]
        edges = "in" if partition else "edges"
        return Content(
            weights=any(reader.has(f"{part}{edges}/weight") for part in parts),
            edge_width=counts.edge_width,
            relations=counts.num_relations > 0,
            types=counts.num_types > 0,
            features=counts.num_features > 0,
            typed_features=any(reader.is_group(f"{part}nodes/typed_features") for part in parts),
        )


def _even(
    counts: Counts, stored: int | None, edge_bytes: int, symmetric: bool, ranks: int
) -> Shape:
    """The largest of `ranks` parts of a partition that isn't there yet."""
    share = 1.0 if ranks == 1 else _IMBALANCE / ranks
    return Shape(
        ranks=ranks,
        nodes=max(1, round(counts.num_nodes * share)),
        edges=round(counts.num_edges * share),
        features=counts.num_features,
        outputs=counts.num_classes,
        halo=0 if ranks == 1 else None,
        volume=0 if ranks == 1 else None,
        stored=None if stored is None else round(stored * share),
        edge_bytes=edge_bytes,
        relations=counts.num_relations,
        symmetric=symmetric,
    )


def _largest(reader: Reader, even: Shape, parts: int) -> Shape:
    sizes = reader.column("exchange/sizes", ("int64",), (parts, 2)).read()
    sends = reader.column("exchange/in", ("int32",), (parts, parts)).read().astype(np.int64)
    total = max(1, int(sizes[:, 0].sum()))
    share = int(sizes[:, 0].max()) / total
    stored = even.stored
    if stored is not None and parts > 1:
        stored = round(stored * parts / _IMBALANCE * share)
    return Shape(
        **asdict(even)
        | {
            "nodes": int(sizes[:, 0].max()),
            "edges": int(sizes[:, 1].max()),
            "halo": int(max(sends.sum(axis=0).max(), sends.sum(axis=1).max())),
            "volume": int(sends.sum()),
            "stored": stored,
        }
    )


def _edge_bytes(counts: Counts, weighted: bool) -> int:
    return 4 * (1 + weighted + (counts.num_relations > 0) + counts.edge_width)


def _text(content: dict[str, Any], config: Config) -> list[str]:
    shape = content["shape"]
    lines = [
        f"{config.model}, {config.layers} layers of {config.hidden}, on {shape['ranks']} ranks; "
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
        lines.append(f"  {note(content['unused'], config)}")
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
