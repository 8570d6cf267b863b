"""Opening a file as this rank's part, on the device that computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import describe, pick_device
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.comm.transport.staged import CudaCopier, pinned_copy
from hpcgnn.display import SILENT, Display
from hpcgnn.errors import InputError
from hpcgnn.graph.features import HostRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.cuda.launch import check_library
from hpcgnn.models.demands import Facts, check_host_features, check_model
from hpcgnn.partition.load import load_partition
from hpcgnn.settings import parse_size
from hpcgnn.system import bytes_read
from hpcgnn.tasks.build import check_task
from hpcgnn.tasks.settings import LABELS, larger_is_better
from hpcgnn.train.config import Config
from hpcgnn.train.optimisation import prepare
from hpcgnn.train.plan.refusal import explained
from hpcgnn.train.scores import LOSSES


def open_part(
    path: str | Path,
    comm: Communicator,
    config: Config,
    display: Display = SILENT,
    rehearse: Callable[[torch.device], None] | None = None,
) -> PartitionedGraph:
    """Return this rank's part on the device in `config`; collective. Rank 0 prints the device.

    On one rank a graph file is a part.

    Args:
        rehearse: called with a GPU before the part is loaded, to load the kernels.

    Raises:
        InputError: there is no such device or transport, CuPy is missing, the file is damaged, or
            this model can't use features in host memory.
        OutOfMemoryError: the part doesn't fit.
    """
    device = pick_device(comm, config.device.kind)
    prepare(config.device.precision)
    if device.type == "cuda":
        _repeatable()
        with agreed(comm, "load CuPy"):
            check_library()
    transport = choose_transport(comm, device, config.streaming.transport)
    ring = Ring(
        comm,
        halo_buffer=parse_size(config.streaming.halo_buffer),
        prefetch=config.streaming.prefetch,
        transport=transport,
    )
    split, mode = config.training.split, config.streaming.mode
    if rehearse is not None and device.type == "cuda":
        with display.stage("load the kernels"):
            rehearse(device)
    share, before = _size(path) / comm.size, bytes_read()
    with display.stage(
        f"load {Path(path).name}", share, "B", done=lambda: min(share, bytes_read() - before)
    ):
        graph = load_partition(path, comm, split=split, ring=ring, mode=mode)
    text = describe(comm, device)
    if comm.rank == 0:
        display.note(f"device: {text}")
    return graph if device.type == "cpu" else place(graph, device, config)


def _size(path: str | Path) -> float:
    try:
        return float(Path(path).stat().st_size)
    except OSError:
        return 0.0


def place(graph: PartitionedGraph, device: torch.device, config: Config) -> PartitionedGraph:
    """Return the part on a GPU, with its features there or in pinned host memory."""
    features = graph.features
    if config.device.features_on == "host" and isinstance(features, Tensor):
        check_host_features(config.model, adversarial=config.training.adversarial_steps > 0)
        rows = HostRows(pinned_copy(features), CudaCopier(device))
        graph = replace(graph, features=rows)
    with explained(graph, config, device):
        graph = graph.to(device)
    return graph  # noqa: RET504


def _repeatable() -> None:
    """Make torch's own operations deterministic, too, where they can be."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch.use_deterministic_algorithms does the same, but takes seconds to load torch's compiler.
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_training(config: Config, facts: Facts) -> None:
    """Check all that training requires of the graph, as far as its header tells.

    Raises:
        InputError: the graph lacks something.
    """
    check_task(
        config.task, config.training.metric, facts.labels, facts.multilabel, facts.num_outputs
    )
    monitor = config.training.monitor
    if monitor not in ("auto", *LOSSES) and larger_is_better(monitor) is None:
        raise InputError(
            f"--monitor {monitor} is not a metric of any task, nor {' or '.join(LOSSES)}"
        )
    one_class = config.task.kind in ("auto", "classes") and config.task.target == LABELS
    if config.model.labels_as_input and not one_class:
        raise InputError("--labels-as-input needs one class per node, from the labels, as task")
    if not config.model.own:  # a user's model reports itself what it lacks
        check_model(config.model, facts)
    made_dense = config.model.embedding > 0
    if config.training.adversarial_steps and facts.features == "sparse" and not made_dense:
        raise InputError("--adversarial-steps needs dense features")
