"""Selection of the kernel module, `cpu` or `cuda`, both with the same functions."""

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

Rows = tuple[int, int]  # first row and one past the last
Pieces = Callable[[Block], Iterable[Rows]]  # the pieces in which a block's rows are processed
Parts = Sequence[tuple[Tensor, Tensor]]  # pairs (x, out): rows of x are copied to out


class Backend(Protocol):
    """The functions of a kernel module, documented under the same names in `hpcgnn.kernels`.

    They don't check their arguments: `hpcgnn.kernels` has done so.
    """

    WHOLE_BLOCKS: bool
    """Whether GAT's kernels take `start`, `self_loops` and `adds=False`, for blocks of all rows."""

    def between(
        self, block: Block, low: int, high: int, picked: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows that have edges in columns `low .. high - 1`, and these edges.

        The columns include the block's offset. The result is the local rows (int32), and the
        first and one past the last of each row's edges. `picked`: these rows of the block
        (int32), if known.
        """

    def range_rows(self, block: Block, most: int) -> tuple[Tensor, Tensor]:
        """Return rows (int32) with edges in each range of `most` columns, and range pointers."""

    def transpose(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return each column's first edge (columns + 1), each edge's local row and old index."""

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

    def head_scores(self, z: Tensor, source: Tensor, target: Tensor, out: Tensor) -> None: ...

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
    """Return the kernels for tensors on `device`, timed while a profile is recorded."""
    if device.type not in ("cpu", "cuda"):
        raise InputError("kernels: tensors must be on the CPU or on a CUDA GPU", value=device)
    kernels = import_module(f"hpcgnn.kernels.{device.type}.backend")
    return cast(Backend, _Timed(kernels) if profiled() else kernels)


class _Timed:
    """Kernels that record a timeline span for each call."""

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
