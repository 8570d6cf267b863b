"""Check of a built-in model's arrays without its graph, whose widths follow from the arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.models.build import Model, build_model
from hpcgnn.models.demands import EDGE_READERS, RELATION_READERS
from hpcgnn.models.settings import ModelSettings
from hpcgnn.train.checkpoint.arrays import built_in_task
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.rows import check_rows
from hpcgnn.train.checkpoint.state import check_stored
from hpcgnn.train.learned import OF_TASK, Learned

_TYPED = re.compile(r"inputs\.(?:inner\.)?maps\.(\d+)\.weight")
_GUESS = 2

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Widths:
    """Widths on which a built-in model's arrays depend, besides its settings."""

    features: int = _GUESS
    outputs: int = _GUESS
    edge: int = 0
    relations: int = 0
    typed: dict[int, int] = field(default_factory=dict)


def check_built_in(checkpoint: Checkpoint, path: Path) -> None:
    """Check that the arrays are those of a built-in model of these settings, on some graph.

    Raises:
        InputError: an array is missing, unknown, or of another shape or dtype.
    """
    settings, given = checkpoint.config.model, _shapes_in(checkpoint)
    comm = Communicator(MPI.COMM_SELF)
    try:
        unknown = ["features", "edge", "relations"]
        if not checkpoint.task:  # of an earlier release
            unknown.insert(0, "outputs")
        guess = _first_guess(checkpoint, given, path)
        widths = _solved(settings, given, guess, unknown, comm)
        model = _built(settings, widths, comm)
    finally:
        comm.close()
    check_stored(model, checkpoint, path)
    learned = Learned(model)
    values = learned.state_dict()
    forms = {name: ("float32", tuple(values[name].shape[1:])) for name in learned.sharded_names()}
    check_rows(checkpoint.rows, forms, path)


def _shapes_in(checkpoint: Checkpoint) -> Shapes:
    return {
        name.removeprefix("model/"): array.shape
        for name, array in checkpoint.arrays.items()
        if name.startswith("model/") and not name.startswith(f"model/{OF_TASK}")
    }


def _first_guess(checkpoint: Checkpoint, given: Shapes, path: Path) -> _Widths:
    kind, outputs = checkpoint.config.model.kind, _GUESS
    if checkpoint.task:
        outputs = built_in_task(checkpoint.task, checkpoint.arrays, path).num_outputs or _GUESS
    found = ((_TYPED.fullmatch(name), shape) for name, shape in given.items())
    return _Widths(
        outputs=outputs,
        edge=_GUESS if kind in EDGE_READERS else 0,
        relations=_GUESS if kind in RELATION_READERS else 0,
        typed={int(match[1]): max(shape[-1], 1) for match, shape in found if match and shape},
    )


def _solved(
    settings: ModelSettings,
    given: Shapes,
    guess: _Widths,
    unknown: Iterable[str],
    comm: Communicator,
) -> _Widths:
    """Return the widths that give these shapes; those of other shapes if none does."""

    def shapes(widths: _Widths) -> Shapes:
        model = _built(settings, widths, comm)
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    guessed = shapes(guess)
    if guess.edge and guessed.keys() - given.keys():  # of arrays for features of edges
        without = replace(guess, edge=0)
        if settings.kind != "gine" and not shapes(without).keys() - given.keys():
            guess, guessed = without, shapes(without)
    # The output's array comes last, the input's first: its width may be the sum of both.
    for name in unknown:
        value: int = getattr(guess, name)
        if not value:
            continue
        other = shapes(replace(guess, **{name: value + 1}))
        order = list(guessed) if name != "outputs" else list(reversed(guessed))
        if (found := _width(order, guessed, other, given)) is not None:
            guess = replace(guess, **{name: max(value + found, 1)})
            guessed = shapes(guess)
    return guess


def _width(names: Iterable[str], guessed: Shapes, wider: Shapes, given: Shapes) -> int | None:
    """Return what is to be added to the guess, from the first array that depends on it."""
    for name in names:
        if len(given.get(name, ())) != len(guessed[name]):
            continue
        for stored, one, two in zip(given[name], guessed[name], wider[name], strict=True):
            if one != two:
                return (stored - one) // (two - one)
    return None


def _built(settings: ModelSettings, widths: _Widths, comm: Communicator) -> Model:
    """Return the model for a graph of one node and one edge, unallocated."""
    zero = torch.zeros(1, dtype=torch.int64)
    block = Block(
        peer=0,
        num_columns=1,
        rows=None,
        begin=zero,
        end=zero + 1,
        columns=zero.to(torch.int32),
        features=torch.empty(1, widths.edge, device="meta") if widths.edge else None,
    )
    edges = EdgeBlocks(0, [block], [zero[:0].to(torch.int32)])
    rows = {n: torch.empty(1, n, device="meta") for n in {widths.features, *widths.typed.values()}}
    graph = PartitionedGraph(
        num_nodes=1,
        num_edges=1,
        num_classes=widths.outputs,
        node_ids=zero,
        original_ids=zero,
        in_edges=edges,
        out_edges=edges,
        execution=Execution(Ring(comm)),
        features=rows[widths.features],
        typed_features={kind: rows[width] for kind, width in widths.typed.items()},
        node_types=zero if widths.typed else None,
        num_relations=widths.relations,
    )
    with torch.device("meta"):
        return build_model(settings, graph, widths.outputs, seed=0)
