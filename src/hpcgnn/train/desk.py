"""What waits to be written beside the training: one checkpoint at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hpcgnn.train.checkpoint import Checkpoint


class WritingDesk:
    """Hands checkpoints to one thread. While it writes, one more may wait.

    A newer checkpoint of the same kind takes the place of the one that waits; one of another kind
    waits for its place, no longer than a write takes.

    Args:
        write: `write(kind, checkpoint)`, which keeps its errors to itself.
    """

    def __init__(self, write: Callable[[str, Checkpoint], None]) -> None:
        self._write = write
        self._moved = threading.Condition()
        self._waiting: tuple[str, Checkpoint] | None = None
        self._busy = False
        self._pool = ThreadPoolExecutor(1, "checkpoint")

    def put(self, kind: str, checkpoint: Checkpoint) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._waiting is None or self._waiting[0] == kind)
            self._waiting = (kind, checkpoint)
            if not self._busy:
                self._busy = True
                self._pool.submit(self._work)

    def wait(self) -> None:
        """Until nothing is written or waits."""
        with self._moved:
            self._moved.wait_for(lambda: not self._busy)

    def close(self) -> None:
        self._pool.shutdown()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._write(*job)
                job = None  # or it would be held beside the next one
        finally:
            with self._moved:
                self._busy = False
                self._moved.notify_all()

    def _next(self) -> tuple[str, Checkpoint] | None:
        with self._moved:
            job, self._waiting = self._waiting, None
            if job is None:
                self._busy = False  # under the same lock, or a `put` in between would be lost
            self._moved.notify_all()
            return job
