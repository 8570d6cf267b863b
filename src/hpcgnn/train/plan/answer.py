"""The answer of `plan`: memory, bytes sent and seconds by number of ranks, and which fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcgnn.train.config import Config
from hpcgnn.train.plan.buffer import check_buffer
from hpcgnn.train.plan.coefficients import IMPORTS
from hpcgnn.train.plan.estimate import (
    Memory,
    Shape,
    bytes_per_epoch,
    estimate,
)
from hpcgnn.train.plan.host import host_bytes
from hpcgnn.train.plan.machine import Machine
from hpcgnn.train.plan.ranks import smallest_ranks
from hpcgnn.train.plan.seconds import Seconds, seconds


@dataclass(frozen=True)
class RankPlan:
    """The plan for one number of ranks; `seconds` is None without machine, `fits` without limit.

    `host`: bytes in host memory beside a GPU's, in addition to the imports.
    """

    shape: Shape
    memory: Memory
    imports: int
    host: int
    sent: int | None
    seconds: Seconds | None
    fits: bool | None

    @property
    def ranks(self) -> int:
        return self.shape.ranks

    @property
    def total(self) -> int:
        """Peak bytes of the rank that needs most, including the imports."""
        return self.memory.peak + self.imports

    def as_json(self) -> dict[str, Any]:
        parts = None if self.seconds is None else asdict(self.seconds)
        return {
            "ranks": self.ranks,
            "shape": asdict(self.shape),
            "memory_bytes": asdict(self.memory) | {"imports": self.imports},
            "peak_bytes_per_rank": self.total,
            "host_bytes_per_rank": self.host,
            "sent_bytes": self.sent,
            "epoch_seconds": None if self.seconds is None else self.seconds.epoch,
            "seconds": parts,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Answer:
    """All plans; `fewest` ranks fit into `limit` bytes each, None if no number of ranks does."""

    plans: list[RankPlan]
    limit: int | None
    fewest: int | None

    @property
    def fits(self) -> bool:
        """Whether some requested number of ranks fits."""
        return self.limit is None or any(plan.fits for plan in self.plans)


def answer(
    shape_at: Callable[[int], Shape],
    counts: Sequence[int],
    config: Config,
    machine: Machine | None,
    limit: int | None,
    own: Callable[[Shape], Memory] | None = None,
) -> Answer:
    """Return the plans for each number of ranks in `counts`.

    Args:
        limit: bytes that a rank may use.
        own: memory of a user's model, whose messages and seconds are unknown.

    Raises:
        InputError: `--halo-buffer` is too small for the rows of a built-in model.
    """
    # With a GPU the imports stay in host memory.
    imports = 0 if config.device.kind == "cuda" else IMPORTS
    plans = []
    for ranks in counts:
        shape = shape_at(ranks)
        if own is None:
            check_buffer(shape, config)
        memory = estimate(shape, config) if own is None else own(shape)
        plans.append(
            RankPlan(
                shape=shape,
                memory=memory,
                imports=imports,
                host=host_bytes(shape, config, memory),
                sent=bytes_per_epoch(shape, config) if own is None else None,
                seconds=None if own or machine is None else seconds(shape, config, machine),
                fits=None if limit is None else memory.peak + imports <= limit,
            )
        )
    fewest = None
    if limit is not None:
        start = 1 if any(plan.fits for plan in plans) else max(counts) + 1
        fewest = smallest_ranks(shape_at, config, limit - imports, start, own)
        fitting = [plan.ranks for plan in plans if plan.fits]
        fewest = min([*fitting, *([] if fewest is None else [fewest])], default=None)
    return Answer(plans, limit, fewest)
