"""`--profile N`: a timeline of N epochs, one Chrome trace per rank.

Open the files at https://ui.perfetto.dev or chrome://tracing. Spans named `ring wait`, `ring pack`
and `kernel` lie beside torch's own operations, and on a GPU beside its kernels and copies.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

from hpcgnn.errors import OutputError
from hpcgnn.storage import atomic
from hpcgnn.train.records import check_regular

_SKIPPED = 1  # first epochs set things up once


class Profile:
    """Around the training loop; `step()` after every epoch. Nothing at all where `epochs` is 0.

    Writes `folder/rank-00000.json` and so on once `epochs` epochs after the first are over, or the
    loop ends.

    Raises:
        OutputError: the file can't be written.
        InputError: something else than a file has its name.
    """

    def __init__(self, folder: Path, rank: int, epochs: int) -> None:
        self.path, self._epochs, self._seen = folder / f"rank-{rank:05d}.json", epochs, 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> Profile:
        return self

    def step(self) -> None:
        """An epoch has ended."""
        self._seen += 1
        if self._epochs and self._seen == _SKIPPED:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif self._seen == _SKIPPED + self._epochs:
            self._write()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._write()
        elif self._profiler is not None:
            self._profiler.stop()

    def _write(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_regular(self.path)
            with atomic.claim(self.path) as temporary:
                profiler.export_chrome_trace(str(temporary))
                atomic.publish(temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise OutputError(f"the profile can't be written: {error}", file=self.path) from error
