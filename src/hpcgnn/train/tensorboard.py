"""The numbers of a run for TensorBoard, in addition to metrics.jsonl."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError

FOLDER = "tensorboard"  # below the run directory


class TensorBoard:
    """A callback with which rank 0 writes each epoch's numbers to RUN_DIR/tensorboard.

    A resumed run continues its curves from the epoch of its checkpoint.

    Raises:
        InputError: the package tensorboard is missing; on all ranks, if it is missing on each.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError("--log tensorboard needs tensorboard: pip install tensorboard")
        self._writer: Any = None

    def on_start(self, trainer: Any) -> None:
        if trainer.comm.rank == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            folder = Path(trainer.run_dir) / FOLDER
            self._writer = SummaryWriter(str(folder), purge_step=trainer.epoch + 1)

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def on_end(self, trainer: Any) -> None:
        if self._writer is not None:
            self._writer.close()


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a record of metrics.jsonl by name; mean and maximum of those per rank.

    A score is named after its metric: `valid/accuracy`.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in ("train", "valid", "test"):
            name = f"{name}/{record.get('metric', 'score')}"
        if isinstance(value, dict):
            found |= {f"{name}/{k}": v for k, v in value.items() if k in ("mean", "max")}
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
            found[name] = value
    return found
