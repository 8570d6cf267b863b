"""What a layer without messages leaves to the next layer, which does it between its messages.

A layer whose sums are kept from epoch to epoch has no messages of its own to overlap with. The next
layer makes the rows that it sends first, and all others while messages travel. In backward it
computes the first layer's gradients from rows that are complete while it still awaits messages.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.products import row_slabs
from hpcgnn.sar.sage_constant import ConstantGradients


class Handed:
    """A layer's output, whose rows the next layer makes by `make`.

    Args:
        y_NG: the output.
        make: computes a slab of its rows.
        gradients: of the layer; None if it has no backward.
    """

    def __init__(
        self, y_NG: Tensor, make: Callable[[slice], None], gradients: ConstantGradients | None
    ) -> None:
        self.y_NG, self.gradients = y_NG, gradients
        self._make, self._left = make, row_slabs(y_NG)

    def make(self, rows: slice) -> None:
        """Make the slabs with any of these rows that aren't made yet."""
        due = [slab for slab in self._left if slab.start < rows.stop and rows.start < slab.stop]
        for slab in due:
            self._left.remove(slab)
            self._make(slab)


def taken(graph: PartitionedGraph, x_NF: Tensor) -> Handed | None:
    """Return what the layer before left to this one, whose input is `x`."""
    handed, graph.execution.handed = graph.execution.handed, None
    return handed if handed is not None and handed.y_NG.data_ptr() == x_NF.data_ptr() else None
