"""Check of a built-in model's arrays without its graph, whose widths follow from the arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.graph.partitioned import of_one_part
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

    def changed(self, name: str, value: int) -> _Widths:
        values: dict[str, Any] = {name: value}
        return replace(self, **values)


def check_built_in(checkpoint: Checkpoint, path: Path) -> None:
    """Check that the arrays are those of a built-in model of these settings, on some graph.

    Raises:
        InputError: an array is missing, unknown, or of another shape or dtype.
    """
    comm = Communicator(MPI.COMM_SELF)
    try:
        model = _Models(checkpoint.config.model, _shapes_in(checkpoint), comm).find(
            _first_guess(checkpoint, path), outputs_known=bool(checkpoint.task)
        )
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


def _first_guess(checkpoint: Checkpoint, path: Path) -> _Widths:
    kind, outputs = checkpoint.config.model.kind, _GUESS
    if checkpoint.task:  # files of earlier releases may have none
        outputs = built_in_task(checkpoint.task, checkpoint.arrays, path).num_outputs or _GUESS
    found = ((_TYPED.fullmatch(name), shape) for name, shape in _shapes_in(checkpoint).items())
    return _Widths(
        outputs=outputs,
        relations=_GUESS if kind in RELATION_READERS else 0,
        typed={int(match[1]): max(shape[-1], 1) for match, shape in found if match and shape},
    )


@dataclass(frozen=True)
class _Models:
    """The models of these settings, by widths; `given` are the stored shapes."""

    settings: ModelSettings
    given: Shapes
    comm: Communicator

    def find(self, widths: _Widths, *, outputs_known: bool) -> Model:
        """Return the model with the given shapes; one with other shapes if there is none."""
        if not outputs_known:
            # Its array comes last; the input's, which comes first, may have the sum of both widths.
            widths = replace(widths, edge=self._edge_widths(widths.outputs)[0])
            widths = self._solved("outputs", widths, backward=True)
        for edge in self._edge_widths(widths.outputs):
            found = replace(widths, edge=edge)
            for name in ("features", "edge", "relations"):
                found = self._solved(name, found)
            model = _built(self.settings, found, self.comm)
            if _shapes_of(model).keys() == self.given.keys():
                break
        return model

    def _edge_widths(self, outputs: int) -> list[int]:
        """Return guesses; a layer may have an array for edges only if they have another width."""
        kind, hidden = self.settings.kind, self.settings.hidden
        if kind not in EDGE_READERS:
            return [0]
        without = [] if kind == "gine" else [0]
        return [max(hidden, outputs) + 1, *without, hidden, outputs]

    def _solved(self, name: str, widths: _Widths, *, backward: bool = False) -> _Widths:
        """Return the widths with that of `name` as the given shapes say."""
        value: int = getattr(widths, name)
        if not value:
            return widths
        guessed, wider = map(self._shapes, (widths, widths.changed(name, value + 1)))
        names = list(reversed(guessed)) if backward else list(guessed)
        more = _width(names, guessed, wider, self.given)
        return widths if more is None else widths.changed(name, max(value + more, 1))

    def _shapes(self, widths: _Widths) -> Shapes:
        return _shapes_of(_built(self.settings, widths, self.comm))


def _shapes_of(model: Model) -> Shapes:
    """Return the shapes of all arrays but the rows of nodes."""
    sharded = Learned(model).sharded_names()
    return {n: tuple(value.shape) for n, value in model.state_dict().items() if n not in sharded}


def _width(names: Iterable[str], guessed: Shapes, wider: Shapes, given: Shapes) -> int | None:
    """Return what is to be added to the guess, from the first array that depends on it."""
    for name in names:
        if len(given.get(name, ())) != len(guessed[name]):
            continue
        for stored, one, two in zip(given[name], guessed[name], wider.get(name, ()), strict=False):
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
    rows = {n: torch.empty(1, n, device="meta") for n in {widths.features, *widths.typed.values()}}
    graph = of_one_part(
        comm,
        block,
        num_classes=widths.outputs,
        features=rows[widths.features],
        typed_features={kind: rows[width] for kind, width in widths.typed.items()},
        node_types=zero if widths.typed else None,
        num_relations=widths.relations,
    )
    with torch.device("meta"):
        return build_model(settings, graph, widths.outputs, seed=0)
