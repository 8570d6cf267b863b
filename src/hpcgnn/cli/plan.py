"""`hpcgnn plan`: say before a job is submitted whether it will fit, and how long it will take."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcgnn.errors import HpcgnnError, InputError, counted, say
from hpcgnn.settings import check_range, parse_size
from hpcgnn.train.config import Config, add_options, resolve
from hpcgnn.train.plan.machine import Machine, known, read_machine

if TYPE_CHECKING:
    from hpcgnn.train.plan.answer import Answer, RankPlan
    from hpcgnn.train.plan.file_shapes import ShapeAt
    from hpcgnn.train.plan.own import Extras

PARALLEL = False

_COUNTS = ("nodes", "edges", "features", "classes", "relations", "edge_width")
_MOST_COUNTS = 64  # of numbers of ranks
_LEAST_MEMORY = 1 << 20
_INTEGER = re.compile(r"\s*-?[0-9]+\s*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "graph",
        type=Path,
        nargs="?",
        metavar="FILE.h5",
        help="a partition file, or graph.h5 with --ranks; omitted with --nodes and --edges",
    )
    parser.add_argument(
        "--ranks",
        metavar="P,...",
        help="numbers of ranks (default: the file's number of parts, or 1)",
    )
    parser.add_argument("--nodes", metavar="N", help="nodes of a graph that is not in a file")
    parser.add_argument(
        "--edges", metavar="N", help="stored edges of that graph, both directions counted"
    )
    parser.add_argument("--features", metavar="N", help="features per node (0)")
    parser.add_argument("--classes", metavar="N", help="classes, labels or values to predict (2)")
    parser.add_argument("--relations", metavar="N", help="types of edges (0)")
    parser.add_argument("--edge-width", metavar="N", help="features per edge (0)")
    parser.add_argument(
        "--labelled",
        type=float,
        metavar="X",
        help="share of the nodes that are trained on; layers are pruned to what these need",
    )
    parser.add_argument(
        "--halo-fraction",
        type=float,
        metavar="X",
        help="remote rows that a rank reads per local node, instead of the estimate",
    )
    parser.add_argument(
        "--machine",
        metavar="NAME",
        help=f"estimate seconds for this machine: {', '.join(known())}, or a file written by "
        "`hpcgnn bench machine`",
    )
    parser.add_argument(
        "--memory-per-rank",
        metavar="SIZE",
        help="memory limit per rank, such as 30GiB (default: the machine's); exit status 1 if none "
        "of the numbers of ranks stays below it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--config", default=None, metavar="FILE.toml", help="settings file (TOML)")
    add_options(parser)


@dataclass(frozen=True)
class _Subject:
    """The planned graph. `parts`: those of a partition file; `unused`: data the model ignores."""

    name: str
    nodes: int
    shape_at: ShapeAt
    parts: int | None
    unused: list[str]


def run(args: argparse.Namespace, comm: None) -> int:
    config = resolve(args, args.config)
    from hpcgnn.train.plan.answer import answer  # only now: PyTorch takes seconds

    machine = None if args.machine is None else read_machine(args.machine)
    if machine is not None and config.device.kind == "auto":
        config = config.changed(device=machine.device)
    fraction = args.halo_fraction
    if fraction is not None and not 0 <= fraction < float("inf"):
        raise InputError("--halo-fraction must be at least 0", value=fraction)
    subject = _of_numbers(args, config) if args.graph is None else _of_file(args, config)
    counts = _ranks(args.ranks, subject)
    limit = None if machine is None else machine.memory_per_rank
    if args.memory_per_rank is not None:
        limit = parse_size(args.memory_per_rank)
        if limit < _LEAST_MEMORY:
            raise InputError(
                f"--memory-per-rank is of {counted(limit, 'byte')}: give it as in 4GiB",
                value=args.memory_per_rank,
            )
    own = None
    if config.model.own:
        from hpcgnn.train.plan.own import measured

        own = measured(config, subject.shape_at(1), _extras(args))
    found = answer(subject.shape_at, counts, config, machine, limit, own)
    if args.json:
        print(json.dumps(_as_json(found, subject, machine, args), indent=1))
    else:
        say(*_text(found, subject, config, machine, args))
    if not found.fits:
        raise HpcgnnError(_refusal(found, args), file=args.graph)
    return 0


def _of_numbers(args: argparse.Namespace, config: Config) -> _Subject:
    from hpcgnn.train.plan.numbers import GraphNumbers
    from hpcgnn.train.plan.shapes import largest_of

    given = {name: _count(name, getattr(args, name)) for name in _COUNTS}
    given = {name: value for name, value in given.items() if value is not None}
    if not {"nodes", "edges"} <= given.keys():
        raise InputError("plan takes a graph or partition file, or --nodes and --edges")
    numbers = GraphNumbers(**given, labelled=args.labelled)  # type: ignore[arg-type]
    numbers.check(config)
    whole = numbers.shape(config)

    def shape_at(ranks: int) -> Any:
        return largest_of(whole, ranks, args.halo_fraction)

    name = f"{numbers.nodes:,} nodes, {numbers.edges:,} edges"
    return _Subject(name, numbers.nodes, shape_at, None, [])


def _of_file(args: argparse.Namespace, config: Config) -> _Subject:
    from hpcgnn.train.plan.file_shapes import content_of_file, shapes_of_file

    given = [name for name in (*_COUNTS, "labelled") if getattr(args, name) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is read from the file", file=args.graph)
    shape_at, parts, counts = shapes_of_file(args.graph, config, args.halo_fraction)
    unused = [] if config.model.own else content_of_file(args.graph).unused(config.model)
    return _Subject(str(args.graph), counts.num_nodes, shape_at, parts, unused)


def _extras(args: argparse.Namespace) -> Extras:
    """Return what the planned graph has besides, which the user's model may read."""
    from hpcgnn.train.plan.file_shapes import arrays_of_file, content_of_file
    from hpcgnn.train.plan.own import Extras

    if args.graph is None:
        return Extras(edge_width=_count("edge_width", args.edge_width) or 0)
    content = content_of_file(args.graph)
    return Extras(content.weights, content.edge_width, arrays_of_file(args.graph))


def _count(name: str, text: str | None) -> int | None:
    """Return the integer of a text like `111059956` or `3.2e9`."""
    if text is None:
        return None
    try:
        value = float(text)
        if value != int(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"--{name.replace('_', '-')} must be an integer", value=text) from None
    return int(text) if text.strip().isdigit() else int(value)


def _ranks(text: str | None, subject: _Subject) -> list[int]:
    from hpcgnn.train.plan.ranks import MOST_RANKS

    if text is None:
        return [subject.parts or 1]
    pieces = text.split(",")
    if len(pieces) > _MOST_COUNTS or not all(map(_INTEGER.fullmatch, pieces)):
        raise InputError("--ranks takes numbers with commas between", value=text[:80])
    counts = sorted({int(piece[:40]) for piece in pieces})
    for ranks in counts:
        check_range("--ranks", ranks, 1, MOST_RANKS)
        if ranks > subject.nodes:
            raise InputError(
                f"--ranks {ranks} would leave parts empty, since there are {subject.nodes} nodes: "
                f"choose at most {subject.nodes}",
                file=None if subject.name.endswith("edges") else subject.name,
            )
    return counts


def _as_json(
    found: Answer, subject: _Subject, machine: Machine | None, args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "machine": None if machine is None else {"name": machine.name, "source": machine.source},
        "plans": [
            plan.as_json() | {"halo_from": _halo_from(plan, subject, args)} for plan in found.plans
        ],
        "limit_bytes": found.limit,
        "fewest_ranks": found.fewest,
        "unused": subject.unused,
    }


def _halo_from(plan: RankPlan, subject: _Subject, args: argparse.Namespace) -> str:
    if plan.ranks in (1, subject.parts):
        return "file"
    return "model" if args.halo_fraction is None else "fraction"


def _text(
    found: Answer,
    subject: _Subject,
    config: Config,
    machine: Machine | None,
    args: argparse.Namespace,
) -> list[str]:
    from hpcgnn.models.demands import note
    from hpcgnn.train.plan.halo import KEPT
    from hpcgnn.train.plan.shapes import IMBALANCE

    model = config.model
    what = model.kind if model.own else f"{model.kind}, {model.layers} layers of {model.hidden}"
    lines = [f"{what}, on {subject.name}"]
    if model.own:
        lines.append(
            "  memory as measured on small random graphs and scaled up; what it sends and how long "
            "it takes is not known before it runs"
        )
    if machine is not None:
        lines.append(f"machine {machine.name}: {machine.source}")
    lines += _table(found.plans, args)
    guessed = {_halo_from(plan, subject, args) for plan in found.plans}
    if "model" in guessed:
        lines.append(
            f"  halo rows: by a model, {KEPT:.0%} of a random partition's (graphs without "
            "structure have up to 4 times as many); a partition file or --halo-fraction gives a "
            "better estimate"
        )
    if guessed != {"file"}:
        lines.append(f"  the largest part is taken to be {IMBALANCE - 1:.0%} above the mean")
    if subject.parts is None:
        lines.append(
            "  every edge is taken to have its reverse; otherwise their lists take twice as much"
        )
    if subject.unused:
        lines.append(f"  {note(subject.unused, model)}")
    if found.limit is not None:
        which = [str(plan.ranks) for plan in found.plans if plan.fits]
        fits = "yes" if len(which) == len(found.plans) else ", ".join(which) or "no"
        lines.append(
            f"  fits in {_size(found.limit, args, 0)} per rank: {fits}; fewest ranks: "
            f"{found.fewest or 'none'}"
        )
    return lines


def _table(plans: list[RankPlan], args: argparse.Namespace) -> list[str]:
    """Return the lines of a table with a column for each number of ranks."""

    def row(name: str, values: list[str]) -> str:
        return f"  {name:<32}" + "".join(f"{value:>16}" for value in values)

    def mb(size: float) -> str:
        return _size(size, args, 1)

    lines = [row("ranks", [f"{plan.ranks:,}" for plan in plans])]
    lines.append(row("largest part: nodes", [f"{plan.shape.nodes:,}" for plan in plans]))
    lines.append(row("edges", [f"{plan.shape.edges:,}" for plan in plans]))
    lines.append(row("halo rows", [f"{plan.shape.halo or 0:,}" for plan in plans]))
    for entry in fields(plans[0].memory):
        sizes = [mb(getattr(plan.memory, entry.name)) for plan in plans]
        lines.append(row(entry.name.replace("_", " "), sizes))
    lines.append(row("peak above imports", [mb(plan.memory.peak) for plan in plans]))
    lines.append(row("with imports", [mb(plan.total) for plan in plans]))
    if any(plan.host for plan in plans):
        lines.append(row("beside it on the host", [mb(plan.host) for plan in plans]))
    sent = ["?" if plan.sent is None else mb(plan.sent) for plan in plans]
    lines.append(row("sent per epoch, all ranks", sent))
    split = [asdict(plan.seconds) for plan in plans if plan.seconds is not None]
    if split:
        for name in split[0]:
            values = [f"{parts[name]:.3g} s" for parts in split]
            lines.append(row(name.replace("_", " ").replace("all reduce", "all-reduce"), values))
        epochs = [f"{plan.seconds.epoch:.3g} s" for plan in plans if plan.seconds is not None]
        lines.append(row("an epoch", epochs))
    return lines


def _size(size: float, args: argparse.Namespace, digits: int) -> str:
    """Return a size in MiB if the limit was given in such units, else in MB."""
    binary = "i" in (args.memory_per_rank or "").lower()
    return f"{size / (1 << 20 if binary else 1e6):,.{digits}f} {'MiB' if binary else 'MB'}"


def _refusal(found: Answer, args: argparse.Namespace) -> str:
    best = min(found.plans, key=lambda plan: plan.total)
    advice = (
        f"use at least {counted(found.fewest, 'rank')}"
        if found.fewest
        else "no number of ranks would fit"
    )
    return (
        f"does not fit: about {_size(best.total, args, 0)} per rank of "
        f"{_size(found.limit or 0, args, 0)} on {counted(best.ranks, 'rank')}; {advice}"
    )
