"""The passes of an epoch on a few nodes, so that a GPU's kernels are loaded before the graph.

CuPy compiles and loads a kernel when it is first launched. Without this, an error would end the run
only after the graph was loaded. The rehearsal has a model, a graph and random numbers of its own:
nothing of it is left but the loaded kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mirror import Mirror, MirrorTransport
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError, KernelError, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model, build_model
from hpcgnn.settings import parse_size
from hpcgnn.train.calls import BuiltInCall
from hpcgnn.train.config import Config
from hpcgnn.train.label_propagation import propagated, smoothed
from hpcgnn.train.open import place
from hpcgnn.train.optimisation import Attack, configure
from hpcgnn.train.sample import Kinds, kinds_of_file, sample

_PEERS = 2


def rehearse(
    path: Path,
    comm: Communicator,
    config: Config,
    device: torch.device,
    *,
    outputs: int = 0,
    trains: bool = True,
    smooths: bool = False,
) -> None:
    """Compile and load the kernels that a built-in model uses on a GPU; collective.

    Nothing is done for a model of the user's own, whose code must not run on another graph: see
    `layer_rehearsal`.

    Args:
        path: the graph or partition file that will be loaded.
        outputs: those of a stored model; 0: as the file's labels and the task ask for.
        trains: whether it will be trained, not only applied.
        smooths: whether Correct & Smooth follows.

    Raises:
        KernelError: a kernel can't be compiled or loaded; on all ranks.
    """
    if config.model.own:
        return
    kinds = _kinds(path, comm, config)
    with in_a_mirror(comm) as own:
        run(kinds, own, config, device, outputs=outputs, trains=trains, smooths=smooths)


def rehearse_labels(path: Path, comm: Communicator, config: Config, device: torch.device) -> None:
    """Like `rehearse`, for label propagation."""
    kinds = _kinds(path, comm, config)
    with in_a_mirror(comm) as own:
        graph = place(sample(kinds, _ring(own, config, device)), device, config)
        propagated(graph, graph.num_classes)


@contextmanager
def in_a_mirror(comm: Communicator) -> Iterator[Mirror]:
    """Run the block with a mirror of this rank, in which it loads kernels; collective.

    Other errors than those of a kernel only end the block: the run itself reports them better, or
    does not have them.

    Raises:
        KernelError: a kernel can't be compiled or loaded; on all ranks.
    """
    with agreed(comm, "load the kernels"):
        own = Mirror(1 + _PEERS if comm.size > 1 else 1)
        try:
            yield own
        except KernelError:
            raise
        except InputError:
            pass
        except Exception as error:
            warn(
                f"hpcgnn: note: rank {comm.rank}: kernels are loaded in the first epoch, as they "
                f"could not be loaded before it ({type(error).__name__}: {error})"
            )
        else:
            own.close()


def _kinds(path: Path, comm: Communicator, config: Config) -> Kinds:
    """Return what the file holds, which rank 0 reads; collective."""
    kinds: Kinds | None = None
    with agreed(comm, "open graph"):
        if comm.rank == 0:
            kinds = kinds_of_file(path, config.task)
    known: Kinds = comm.broadcast(kinds, where="open graph")
    return known


def _ring(comm: Mirror, config: Config, device: torch.device) -> Ring:
    return Ring(
        comm,
        halo_buffer=parse_size(config.streaming.halo_buffer),
        prefetch=config.streaming.prefetch,
        transport=MirrorTransport(device),
    )


def run(
    kinds: Kinds,
    comm: Mirror,
    config: Config,
    device: torch.device,
    *,
    outputs: int,
    trains: bool,
    smooths: bool,
) -> None:
    """Run the passes for a graph of these kinds."""
    ring = _ring(comm, config, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        graph = configure(place(sample(kinds, ring), device, config), config)
        model = build_model(config.model, graph, outputs or kinds.outputs, 0).to(device)
        if trains:
            for prune in {config.streaming.prune, False}:
                _train(model, graph, config.changed(prune=prune))
        with torch.no_grad():
            scores = _call(model, graph, config).output()
            if smooths:
                smoothed(graph, scores)


def _call(model: Model, graph: PartitionedGraph, config: Config) -> BuiltInCall:
    """Return the call of the model, in evaluation."""
    model.eval()
    rows = torch.nonzero(graph.train_mask).flatten()  # type: ignore[arg-type]
    return BuiltInCall(model, graph, config, rows)


def _train(model: Model, graph: PartitionedGraph, config: Config) -> None:
    """Run a forward and a backward pass; the loss is any whose gradient has the same form."""
    call = _call(model, graph, config)
    model.train()
    graph.set_epoch(1)

    def one(x_NF: Tensor | None = None) -> float:
        call.training_output(x_NF).square().mean().backward()
        return 0.0

    if config.training.adversarial_steps:
        Attack(model, graph, config).run(one)
    else:
        one()
