"""`hpcgnn train`: train a model on a graph or a partition file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcgnn.cli.displays import display_of
from hpcgnn.comm.agreement import require_same
from hpcgnn.display import Display
from hpcgnn.errors import InputError, counted, human, warn
from hpcgnn.settings import HIGHEST, check_range
from hpcgnn.storage.read.reader import Reader
from hpcgnn.system import loading, resident_files, resident_memory
from hpcgnn.train.config import Config, add_options, former_settings, resolve
from hpcgnn.train.stop import StopRequest

if TYPE_CHECKING:
    import torch

    from hpcgnn.comm.communicator import Communicator
    from hpcgnn.graph.partitioned import PartitionedGraph
    from hpcgnn.train.trainer import Trainer

PARALLEL = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "graph",
        nargs="?",
        metavar="GRAPH.h5",
        help="graph.h5, or a partition file with one part per rank; with --resume also a run "
        "directory, whose graph is used",
    )
    parser.add_argument(
        "--run-dir", metavar="RUN", default=None, help="folder for the results (default: runs/NAME)"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="continue from the newest complete checkpoint of the run directory, if there is one, "
        "with the run's settings except for those given here",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        default=None,
        metavar="FILE",
        help="weights to start from, .safetensors or .pt (hpcgnn export, or model.state_dict())",
    )
    parser.add_argument(
        "--config", default=None, metavar="FILE", help="settings file: TOML, or a run's config.json"
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="write a timeline of N epochs to RUN_DIR/profile, one Chrome trace per rank",
    )
    parser.add_argument(
        "--log",
        choices=("tensorboard",),
        help="also write each epoch's numbers to RUN_DIR/tensorboard; --resume continues it",
    )
    add_options(parser)


def listen(args: argparse.Namespace) -> StopRequest:
    """Let `STOP_SIGNALS` request a checkpoint and a stop, before anything slow is loaded."""
    args.stop = StopRequest()
    return args.stop


def run(args: argparse.Namespace, comm: Communicator) -> int:
    from hpcgnn.train.header import check_header

    source, run_dir = _places(args, comm)
    args.run_dir = run_dir
    config = resolve_together(args, comm, run_dir)
    check_range("--profile", args.profile, 0, HIGHEST)
    which_split = check_header(source, comm, config)
    with display_of(args, comm.rank) as display:
        if which_split:
            display.note(which_split)
        # Imported here, since PyTorch takes seconds: other ranks and signals are handled meanwhile.
        with comm.at("imports"), display.stage("load PyTorch"), loading():
            import hpcgnn.train.configured  # noqa: F401 - counts among the imports
            from hpcgnn.train.automatic import file_of_parts
            from hpcgnn.train.run_directory import held

        imported = resident_memory() - resident_files()
        _check_before_partition(source, comm, config)
        partition = file_of_parts(source, comm, config, display)
        with held(run_dir, comm, fresh=not args.resume):
            return _train(args, comm, config, source, partition, run_dir, imported, display)


def _check_before_partition(source: Path, comm: Communicator, config: Config) -> None:
    """Refuse a model or task that doesn't fit the graph before it is partitioned. Collective."""
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.train.own_model import ModelFile
    from hpcgnn.train.plan.file_shapes import check_file

    with agreed(comm, "open graph"):
        if config.model.own:
            ModelFile.of(config.model)
        if comm.rank == 0:
            check_file(source, config)


def _places(args: argparse.Namespace, comm: Communicator) -> tuple[Path, Path]:
    """Return the graph or partition file, and the run directory. Collective."""
    from hpcgnn.comm.agreement import agreed

    if args.run_dir is None and args.resume and Path(args.graph or "").is_dir():
        args.graph, args.run_dir = None, args.graph  # `--resume RUN`
    if args.graph is not None:
        source = Path(args.graph)
        with agreed(comm, "open graph"):
            if comm.rank == 0:
                if args.resume and not source.exists():
                    raise InputError("no such graph, partition or run directory", file=source)
                with Reader(source, None):
                    pass
        return source, Path(args.run_dir or Path("runs") / source.name.split(".")[0])
    if args.run_dir is None or not args.resume:
        raise InputError(
            "name the graph or partition file to train on; to continue a run without naming it, "
            "use --resume RUN"
        )
    from hpcgnn.train.run import last_source

    found = ""
    with agreed(comm, "read the run"):
        if comm.rank == 0:
            found = str(last_source(Path(args.run_dir)))
    return Path(comm.broadcast(found, where="read the run")), Path(args.run_dir)


def resolve_together(args: argparse.Namespace, comm: Communicator, run_dir: Path) -> Config:
    """Return the settings, which each rank reads, once they are the same on all. Collective."""
    from hpcgnn.comm.agreement import agreed

    with agreed(comm, "read the settings"):
        former = former_settings(run_dir) if args.resume else None
        config = resolve(args, args.config, former)
    require_same(comm, config.flat(), "settings", file=args.config)
    return config


def _train(
    args: argparse.Namespace,
    comm: Communicator,
    config: Config,
    source: Path,
    partition: Path,
    run_dir: Path,
    imported: int,
    display: Display,
) -> int:
    from hpcgnn.train.configured import configured_trainer
    from hpcgnn.train.open import open_part
    from hpcgnn.train.plan.fit import warn_if_short
    from hpcgnn.train.plan.refusal import explained
    from hpcgnn.train.rehearsal import rehearse
    from hpcgnn.train.run import note_start
    from hpcgnn.train.run_directory import write_config
    from hpcgnn.train.telemetry import Profile, peak_memory

    _check_first_weights(args.init_from, comm)
    callbacks = _callbacks(args, comm, run_dir)
    with comm.at("read the partition"):
        warn_if_short(partition, comm, config)
        kernels = partial(rehearse, partition, comm, config)
        graph = open_part(partition, comm, config, display, kernels)
    device = graph.node_ids.device
    stop, show = getattr(args, "stop", None), getattr(args, "show", "lines")
    with explained(graph, config, device):
        trainer = configured_trainer(
            graph,
            config,
            run_dir,
            resume=args.resume,
            stop=stop,
            show=show,
            display=display,
            callbacks=callbacks,
        )
    if args.init_from is not None:
        if trainer.start == 0:
            _init_from(args.init_from, trainer.model, graph, comm, display)
        elif comm.rank == 0:
            display.note(f"continues from epoch {trainer.start}, not from {args.init_from}")
    if trainer.begins:
        write_config(run_dir, comm, config)
    note_start(run_dir, graph, from_epoch=trainer.epoch, source=source, parts=partition)
    _say_what_trains(trainer, graph, config, run_dir, display)
    with (
        explained(graph, config, device),
        Profile(run_dir / "profile", comm.rank, args.profile) as profile,
    ):
        trainer.run(profile)
    # Subtract only as many bytes of files as are in memory now: pages of libraries load late.
    held = imported + resident_files() if device.type == "cpu" else 0
    peak = max(0, peak_memory(device) - held)
    _say_memory(peak, graph, config, display)
    return 0


def _say_what_trains(
    trainer: Trainer, graph: PartitionedGraph, config: Config, run_dir: Path, display: Display
) -> None:
    """Print the model's size and where it runs, on rank 0. Collective."""
    from hpcgnn.models.demands import content_of, has_neighbours, note
    from hpcgnn.nn.linear import is_sharded

    unused = [] if config.model.own else content_of(graph).unused(config.model)
    alone = not has_neighbours(graph)
    if graph.comm.rank != 0:
        return
    if unused:
        display.note(note(unused, config.model))
    if alone:
        what = "every edge is a self-loop" if graph.num_edges else "the graph has no edges"
        display.note(f"note: {what}: no node receives a message from another")
    number = sum(parameter.numel() for parameter in trainer.parameters)
    layers = "" if config.model.own else f"{counted(config.model.layers, 'layer')}, "
    divided = graph.comm.size > 1 and any(map(is_sharded, trainer.parameters))
    where = " on rank 0" if divided else ""
    display.note(
        f"{config.model.kind}: {layers}{number:,} parameters{where}; "
        f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges "
        f"on {counted(graph.comm.size, 'rank')}; "
        f"transport {graph.ring.transport.name}; run directory {run_dir}"
    )


def _say_memory(peak: int, graph: PartitionedGraph, config: Config, display: Display) -> None:
    """Print the peak memory of the ranks, on rank 0. Collective.

    Args:
        peak: bytes that this rank used above its imports.
    """
    comm = graph.comm
    least, most = comm.allreduce(peak, "min"), comm.allreduce(peak, "max")
    total = comm.allreduce(peak, "sum")
    if comm.rank == 0:
        ends = [human(least), human(most)]
        shares = f"{' to '.join(dict.fromkeys(ends))} per rank, {human(total)} in all"
        display.say(
            f"peak memory above imports: {shares if comm.size > 1 else human(total)}; "
            f"halo buffers {human(graph.ring.peak_bytes)} of {config.streaming.halo_buffer}"
        )


def _callbacks(args: argparse.Namespace, comm: Communicator, run_dir: Path) -> list[Any]:
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.train.tensorboard import FOLDER, TensorBoard

    goes_on = args.resume and comm.broadcast((run_dir / FOLDER).is_dir(), where="--log")
    with agreed(comm, "--log"):
        return [TensorBoard()] if args.log or goes_on else []


def _check_first_weights(path: Path | None, comm: Communicator) -> None:
    """Refuse an unreadable --init-from, even if the run is resumed. Collective."""
    from hpcgnn.comm.agreement import agreed
    from hpcgnn.train.weights import read_weights

    with agreed(comm, "read the first weights"):
        if path is not None and comm.rank == 0:
            read_weights(path)


def _init_from(
    path: Path,
    model: torch.nn.Module,
    graph: PartitionedGraph,
    comm: Communicator,
    display: Display,
) -> None:
    from hpcgnn.train.weights import start_from

    differences = start_from(model, graph.node_ids, path, comm)
    if comm.rank == 0:
        display.note(f"starts from the weights of {path}")
        for line in differences.lines(path):
            warn(f"hpcgnn: note: {line}")
