"""Memory of the host that a rank takes while it trains on a GPU."""

from __future__ import annotations

from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import Memory, Shape, on_host, parameter_copies, parameters

_GRADIENTS = 3  # copies: for the GPU, what MPI receives, and the sums


def host_bytes(shape: Shape, config: Config, memory: Memory) -> int:
    """Return the most bytes in host memory, pinned or not, in addition to the imports.

    These are features that stay there, messages where these are staged, and gradients while MPI
    sums them; 0 without a GPU, where `memory` is that of the host.
    """
    if config.device.kind != "cuda":
        return 0
    total = 4 * shape.nodes * shape.features if on_host(shape, config) else 0
    if shape.ranks > 1:
        total += memory.halo_buffers
        if config.device.gradient_sums == "mpi":
            total += _GRADIENTS * _gradients(shape, config, memory)
    return total


def _gradients(shape: Shape, config: Config, memory: Memory) -> int:
    """Return the bytes of the gradients of replicated parameters."""
    if config.model.own:
        return memory.parameters // parameter_copies(shape, config)
    return 4 * parameters(shape, config)
