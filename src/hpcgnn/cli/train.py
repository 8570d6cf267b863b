"""`hpcgnn train`: train a model on a graph or a partition file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.comm.agreement import require_same
from hpcgnn.errors import InputError, say, warn
from hpcgnn.settings import HIGHEST, check_range
from hpcgnn.storage.schema import GRAPH, PARTITION
from hpcgnn.train.config import Config, add_options, resolve
from hpcgnn.train.stop import StopRequest

if TYPE_CHECKING:
    import torch

    from hpcgnn.comm.communicator import Communicator
    from hpcgnn.graph.partitioned import PartitionedGraph

PARALLEL = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="graph.h5, or a partition file with one part per rank")
    parser.add_argument("--run-dir", default=None, help="where results go (default: runs/NAME)")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="go on from the newest whole checkpoint of the run directory, if there is one",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        default=None,
        metavar="FILE",
        help="weights to start from, .safetensors or .pt (hpcgnn export, or model.state_dict())",
    )
    parser.add_argument("--config", default=None, metavar="FILE.toml", help="settings as TOML")
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="write a timeline of N epochs to RUN_DIR/profile, one Chrome trace per rank",
    )
    shown = parser.add_mutually_exclusive_group()
    for flags, show, text in (
        (("-v", "--verbose"), "all", "also waiting, bytes and memory of each epoch"),
        (("-q", "--quiet"), "nothing", "no line per epoch"),
        (("--log-json",), "json", "the records of metrics.jsonl instead of lines"),
    ):
        shown.add_argument(*flags, dest="show", action="store_const", const=show, help=text)
    parser.set_defaults(show="lines")
    add_options(parser)


def listen(args: argparse.Namespace) -> StopRequest:
    """From the first moment on, SIGUSR1 and SIGTERM ask for a checkpoint and a stop."""
    args.stop = StopRequest()
    return args.stop


def run(args: argparse.Namespace, comm: Communicator) -> int:
    # Only now, since PyTorch takes seconds: other ranks and signals are heard meanwhile.
    with comm.at("imports"):
        import hpcgnn.train.configured  # noqa: F401 - counts among the imports
        from hpcgnn.system import resident_memory
        from hpcgnn.train.run_directory import held

    imported = resident_memory()
    config = resolve_together(args, comm)
    check_range("--profile", args.profile, 0, HIGHEST)
    source = Path(args.graph)
    partition = _partition_file(source, comm, config)
    run_dir = Path(args.run_dir) if args.run_dir else Path("runs") / source.name.split(".")[0]
    with held(run_dir, comm, fresh=not args.resume):
        return _train(args, comm, config, partition, run_dir, imported)


def resolve_together(args: argparse.Namespace, comm: Communicator) -> Config:
    """The settings, the same on all ranks though each reads its file; collective."""
    from hpcgnn.comm.agreement import agreed

    with agreed(comm, "read the settings"):
        config = resolve(args, args.config)
    require_same(comm, config.flat(), "settings", file=args.config)
    return config


def _train(
    args: argparse.Namespace,
    comm: Communicator,
    config: Config,
    partition: Path,
    run_dir: Path,
    imported: int,
) -> int:
    from hpcgnn.models.demands import content_of, note
    from hpcgnn.train.configured import configured_trainer
    from hpcgnn.train.open import open_part
    from hpcgnn.train.plan.refusal import explained
    from hpcgnn.train.run_directory import write_config
    from hpcgnn.train.starts import note_start
    from hpcgnn.train.telemetry import Profile, human, peak_memory

    with comm.at("read the partition"):
        graph = open_part(partition, comm, config)
    ring, device = graph.ring, graph.node_ids.device
    stop = getattr(args, "stop", None)
    with explained(graph, config, device):
        trainer = configured_trainer(
            graph, config, run_dir, resume=args.resume, stop=stop, show=args.show
        )
    if args.init_from is not None and trainer.start == 0:
        _init_from(args.init_from, trainer.model, graph, comm)
    if trainer.begins:
        write_config(run_dir, comm, config)
    note_start(run_dir, graph, from_epoch=trainer.epoch, partition=partition)
    unused = [] if config.model.own else content_of(graph).unused(config.model)
    if unused and comm.rank == 0:
        print(note(unused, config.model), flush=True)
    if comm.rank == 0:
        count = sum(parameter.numel() for parameter in trainer.parameters)
        layers = "" if config.model.own else f"{config.model.layers} layers, "
        say(
            f"{config.model.kind}: {layers}{count:,} parameters on rank 0; "
            f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges on {comm.size} ranks; "
            f"transport {ring.transport.name}; run directory {run_dir}"
        )
    with (
        explained(graph, config, device),
        Profile(run_dir / "profile", comm.rank, args.profile) as profile,
    ):
        trainer.run(profile)
    peak = peak_memory(device) - (imported if device.type == "cpu" else 0)
    least, most = comm.allreduce(peak, "min"), comm.allreduce(peak, "max")
    total = comm.allreduce(peak, "sum")
    if comm.rank == 0:
        print(
            f"peak memory above imports: {human(least)} to {human(most)} per rank, {human(total)} "
            f"in all; halo buffers {human(ring.peak_bytes)} of {human(ring.halo_buffer)}"
        )
    return 0


def _init_from(
    path: Path, model: torch.nn.Module, graph: PartitionedGraph, comm: Communicator
) -> None:
    from hpcgnn.train.initial import start_from

    differences = start_from(model, graph.node_ids, path, comm)
    if comm.rank == 0:
        say(f"starts from the weights of {path}")
        for line in differences.lines(path):
            warn(f"hpcgnn: note: {line}")


def _partition_file(source: Path, comm: Communicator, config: Config) -> Path:
    """The partition to train on: `source` itself, or one made from it and kept."""
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.partition.pipeline import partition_graph
    from hpcgnn.storage.read.reader import Reader

    kind = fingerprint = ""
    with agreed(comm, "open graph"):
        if comm.rank == 0:
            with Reader(source, None) as reader:
                kind = reader.text("format")
                fingerprint = reader.text("fingerprint") if kind == GRAPH else ""
    kind, fingerprint = comm.broadcast((kind, fingerprint), where="open graph")
    if kind != GRAPH:
        return source
    folder = Path("partitions")
    target = folder / f"{source.stem}.{config.training.method}.p{comm.size}.h5"
    if not comm.broadcast(_is_partition_of(target, fingerprint, config), where="open partition"):
        with agreed(comm, "open partition"):
            if comm.rank == 0:
                _check_own(target)
        partition_graph(
            comm,
            source,
            comm.size,
            method=config.training.method,
            out=target,
            seed=config.training.seed,
            force=True,
            command="train",
        )
    return target


def _check_own(path: Path) -> None:
    """Refuse to replace a partition that isn't one that training made for itself."""
    from hpcgnn.storage.read.reader import Reader

    if not os.path.lexists(path):
        return
    try:
        with Reader(path, PARTITION) as reader:
            own = reader.json("config").get("command") == "train"
    except InputError:
        own = False
    if not own:
        raise InputError(
            "is no partition that training made of this graph: train on a partition file instead "
            "of the graph, or remove this one",
            file=path,
        )


def _is_partition_of(path: Path, fingerprint: str, config: Config) -> bool:
    from hpcgnn.storage.read.reader import Reader

    if not path.exists():
        return False
    try:
        with Reader(path, PARTITION) as reader:
            same_graph = reader.text("graph_fingerprint") == fingerprint
            asked = config.training.method
            return same_graph and asked in ("auto", reader.text("method"))
    except InputError:  # not one that can be used
        return False
