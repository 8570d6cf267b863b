"""Requirements after a fault: how the job ends, and the files that it leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.train.checkpoint.file import read

EPOCHS = 8
STOPS = ("SIGTERM", "SIGUSR1")  # at which training agrees to stop
SOON, SOON_STOPPED = 30.0, 60.0
RESULTS = {
    "convert": ("graph.h5",),
    "partition": ("graph.p2.h5",),
    "predict": ("predictions.h5",),
}


@dataclass(frozen=True)
class Fault:
    """A fault: `signal` to `rank` of the job `verb` the `visit`-th time that it is at `place`.

    Attributes:
        delay: seconds between the place and the signal.
        model: a key of `MODELS`; of training only.
    """

    verb: str
    signal: str
    rank: int
    place: str
    visit: int = 1
    delay: float = 0.0
    model: str = "sage"

    def __str__(self) -> str:
        delay = f"+{1000 * self.delay:.0f}ms" if self.delay else ""
        model = f"-{self.model}" if self.verb == "train" else ""
        return f"{self.verb}{model}-{self.signal}-{self.rank}-{self.place}{self.visit}{delay}"


def judge_end(fault: Fault, status: int, seconds: float, folder: Path) -> list[str]:
    problems = []
    limit = SOON_STOPPED if fault.signal == "SIGSTOP" else SOON
    if seconds > limit:
        problems.append(f"the job took {seconds:.0f} s to end")
    errors = (folder / "stderr").read_text()
    if "Traceback" in errors:
        problems.append(f"a traceback: {errors}")
    if fault.signal == "SIGSTOP" and status != 0 and not _names(fault, errors):
        problems.append(f"no line names rank {fault.rank}: {errors}")
    stops = fault.verb == "train" and fault.signal in STOPS
    done = (folder / fault.model / "checkpoints" / f"epoch-{EPOCHS:06d}.h5").exists()
    requeue = (folder / fault.model / "REQUEUE").exists()
    if stops and (status != 0 or done == requeue):
        problems.append(f"an agreed stop ended with status {status}, REQUEUE {requeue}: {errors}")
    # The signal may reach a rank when it has nothing more to do for the job.
    if not stops and status == 0 and not _complete(fault, folder):
        problems.append(f"status 0 after {fault.signal}")
    return problems


def _complete(fault: Fault, folder: Path) -> bool:
    text = (folder / "stdout").read_text()
    if fault.verb == "convert":  # only one process works
        return fault.rank != 0
    return "peak memory above imports" in text or "predictions of" in text or " 2 parts in " in text


def _names(fault: Fault, errors: str) -> bool:
    lines = [line for line in errors.splitlines() if line.startswith("hpcgnn: error:")]
    return len(lines) == 1 and (
        f"error: rank {fault.rank} (" in lines[0] or "for the other ranks to start" in lines[0]
    )


def judge_files(fault: Fault, good: Path, folder: Path) -> list[str]:
    """Check that files under a final name are complete and have the same content as before."""
    problems = []
    for name in RESULTS.get(fault.verb, ()):
        problems += _compare_files(good / name, folder / name)
    if fault.verb == "train":
        for path in (folder / fault.model / "checkpoints").glob("*.h5"):
            try:
                read(path)
            except InputError as error:
                problems.append(str(error))
    return problems


def contents(path: Path) -> dict[str, np.ndarray]:
    """Return every dataset of a file."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def _compare_files(good: Path, other: Path) -> list[str]:
    try:
        ours, theirs = contents(good), contents(other)
    except OSError as error:
        return [f"{other.name} is damaged: {error}"]
    if ours.keys() != theirs.keys():
        return [f"{other.name} holds other datasets: {sorted(ours.keys() ^ theirs.keys())}"]
    return [
        f"{other.name}: {name} differs"
        for name in ours
        if ours[name].tobytes() != theirs[name].tobytes()
    ]


def compare_runs(good: Path, other: Path) -> list[str]:
    last = Path("checkpoints") / f"epoch-{EPOCHS:06d}.h5"
    problems = _compare_files(good / last, other / last)
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (good, other)
    ]
    losses = [[(record["epoch"], record["loss"]) for record in run] for run in records]
    if losses[0] != losses[1]:
        problems.append(f"metrics.jsonl differs: {losses[1]}")
    if (other / "REQUEUE").exists():
        problems.append("REQUEUE is still there")
    return problems
