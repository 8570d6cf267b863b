"""Which module does the work: `cpu` or `cuda`, each with the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.block import Block, RowScale
from hpcgnn.kernels.masks import Stream, Sums
from hpcgnn.timeline import profiled, span

Rows = tuple[int, int]  # first row and the one after the last
Pieces = Callable[[Block], Iterable[Rows]]  # in which pieces a block's rows are worked on
Parts = Sequence[tuple[Tensor, Tensor]]  # what rows are taken of, and where they go


class Backend(Protocol):
    """The kernels themselves; what they mean stands at the face's functions of the same names.

    They trust their arguments: the face has checked them.
    """

    WHOLE_BLOCKS: bool
    """Whether GAT's kernels take `start`, `loops` and `adds=False`, for blocks of all rows."""

    def between(
        self, block: Block, low: int, high: int, picked: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Local rows (int32) with edges in columns `low .. high - 1`, counted with offset; first
        and last of these edges. `picked`: which rows of the block (int32), where that is known."""

    def range_rows(self, block: Block, most: int) -> tuple[Tensor, Tensor]:
        """Rows (int32) with edges in each range of `most` columns, and where each range begins."""

    def transpose(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Begin of each column (one more than columns); local row and old edge of each edge."""

    def spmm(
        self,
        block: Block,
        x: Tensor,
        out: Tensor,
        rows: Rows,
        adds: bool,
        scale: Tensor | None = None,
        after: RowScale | None = None,
    ) -> None: ...

    def spmm_max(
        self, block: Block, x: Tensor, best: Tensor, ties: Tensor, sign: int, rows: Rows
    ) -> None: ...

    def spmm_max_backward(
        self, block: Block, best: Tensor, share: Tensor, x: Tensor, grad: Tensor, rows: Rows
    ) -> None: ...

    def gat_forward(
        self,
        block: Block,
        sources: Sources,
        t: Tensor,
        softmax: RunningSoftmax,
        scoring: Scoring,
        rows: Rows,
    ) -> None: ...

    def gat_backward(
        self,
        block: Block,
        destinations: Destinations,
        sources: Sources,
        grads: GATGradients,
        scoring: Scoring,
        rows: Rows,
    ) -> None: ...

    def gatv2_forward(
        self,
        block: Block,
        inputs: Projections,
        softmax: RunningSoftmax,
        scoring: Scoring,
        rows: Rows,
    ) -> None: ...

    def gatv2_backward(
        self,
        block: Block,
        inputs: Projections,
        result: ResultGradient,
        grads: GATv2Gradients,
        scoring: Scoring,
        pieces: Pieces,
    ) -> None: ...

    def pack_rows(self, x: Tensor, rows: Tensor, out: Tensor) -> None: ...

    def pack_parts(self, parts: Parts, rows: Tensor) -> None: ...

    def add_rows(self, x: Tensor, rows: Tensor, out: Tensor) -> None: ...

    def head_dots(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        minus: Tensor | None,
        grad: Tensor | None = None,
        p: float = 0.0,
    ) -> None: ...

    def dropout_nodes(
        self,
        x: Tensor,
        out: Tensor,
        ids: Tensor,
        p: float,
        stream: Stream,
        relu: bool,
        passed: Tensor | None,
        sums: Sums | None = None,
    ) -> None: ...

    def new_passed(self, x: Tensor, out: Tensor) -> Tensor: ...

    def passed_backward(self, passed: Tensor, g: Tensor, out: Tensor, p: float) -> None: ...

    def relu_dropout_backward(self, y: Tensor, g: Tensor, out: Tensor, p: float) -> None: ...


def backend(device: torch.device) -> Backend:
    """The kernels for tensors on `device`; while a profile is taken, timed ones."""
    if device.type not in ("cpu", "cuda"):
        raise InputError("kernels: tensors must be on the CPU or on a CUDA GPU", value=device)
    kernels = import_module(f"hpcgnn.kernels.{device.type}.backend")
    return cast(Backend, _Timed(kernels) if profiled() else kernels)


class _Timed:
    """Kernels that leave a span each."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if not callable(function):
            return function

        def timed(*args: Any, **kwargs: Any) -> Any:
            with span(f"kernel {name}"):
                return function(*args, **kwargs)

        return timed
