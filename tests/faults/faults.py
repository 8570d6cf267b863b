"""Injection of a signal into a running job, and inspection of what it leaves."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.faults.judge import (
    EPOCHS,
    RESULTS,
    SOON_STOPPED,
    Fault,
    compare_runs,
    judge_end,
    judge_files,
)

RANKS = 2
TRAIN = ["--hidden", "4", "--epochs", str(EPOCHS), "--checkpoint-every", "2", "--keep", "3"]
MODELS = {
    "sage": ["--model", "sage", "--layers", "2"],
    "gat": ["--model", "gat", "--layers", "2", "--heads", "2", "--dropout", "0.3"],
    "embedding": ["--model", "sage", "--layers", "2", "--embedding", "3"],
}
TIMEOUT = 3.0
_ROOT = Path(__file__).parents[2]
_MARK = "HPCGNN_FAULT_JOB"


@dataclass(frozen=True)
class Outcome:
    """The result of a job after a fault; `problems` is empty if everything is as it should be."""

    fault: Fault
    injected: bool
    status: int
    seconds: float
    folder: Path
    problems: tuple[str, ...]
    requeue: bool


class Workplace:
    """A folder with small inputs, the files of undisturbed jobs, and jobs with faults."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.python = folder, python
        self.good = folder / "good"
        self.good.mkdir(parents=True)
        rng = np.random.default_rng(0)
        np.save(self.good / "edges.npy", rng.integers(0, 300, (2000, 2)))
        np.save(self.good / "x.npy", rng.normal(size=(300, 6)).astype(np.float32))
        np.save(self.good / "y.npy", rng.integers(0, 3, 300))
        np.save(self.good / "split.npy", rng.integers(1, 4, 300).astype(np.int8))
        convert = self.command("convert", "", self.good)
        _run([python, "-m", "hpcgnn.cli.main", *convert])
        commands = [self.command("partition", "", self.good)]
        commands += [self.command("train", model, self.good) for model in MODELS]
        self.several([*commands, self.command("predict", "", self.good)])

    def command(self, verb: str, model: str, folder: Path) -> list[str]:
        """Return the arguments of a job that works in `folder`."""
        good, partition = self.good, str(self.good / "graph.p2.h5")
        if verb == "convert":
            given = ["--features", "x.npy", "--labels", "y.npy", "--split", "split.npy"]
            nodes = [str(good / word) if word.endswith(".npy") else word for word in given]
            edges, out = str(good / "edges.npy"), str(folder / "graph.h5")
            return ["convert", edges, out, "--force", *nodes, "--num-nodes", "300"]
        if verb == "partition":
            out = str(folder / "graph.p2.h5")
            return ["partition", str(good / "graph.h5"), "--method", "block", "-o", out, "--force"]
        if verb == "train":
            run_dir = str(folder / model)
            return ["train", partition, "--run-dir", run_dir, "--resume", *TRAIN, *MODELS[model]]
        last = good / "sage" / "checkpoints" / f"epoch-{EPOCHS:06d}.h5"
        out = str(folder / "predictions.h5")
        return ["predict", partition, str(last), "-o", out, "--force"]

    def several(self, commands: list[list[str]]) -> None:
        """Run commands in one undisturbed job."""
        file = self.folder / "commands.json"
        file.write_text(json.dumps(commands))
        _run([*_mpiexec(), self.python, "-m", "tests.faults.several", str(file)])

    def inject(self, fault: Fault) -> Outcome:
        """Run the job, inject the fault, wait for all processes to end, judge the result."""
        folder = self.folder / f"{fault}-{secrets.token_hex(2)}"
        folder.mkdir()
        for name in RESULTS.get(fault.verb, ()):
            shutil.copy(self.good / name, folder / name)
        order, injected = folder / "fault.json", folder / "injected"
        order.write_text(json.dumps(asdict(fault) | {"injected": str(injected)}))
        mark = secrets.token_hex(8)
        command = [self.python, "-m", "tests.faults.target", str(order)]
        command += self.command(fault.verb, fault.model, folder)
        if fault.signal == "SIGSTOP":
            command += ["--timeout", str(TIMEOUT)]
        with (folder / "stderr").open("w") as stderr, (folder / "stdout").open("w") as stdout:
            job = subprocess.Popen(
                [*_mpiexec(), *command],
                env=_environment() | {_MARK: mark},
                cwd=_ROOT,
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
            )
        status, seconds, left = _await_end(job, mark, injected)
        problems = [f"processes {left} were left after {seconds:.0f} s"] if left else []
        if injected.exists() and not left:
            problems += judge_end(fault, status, seconds, folder)
        problems += judge_files(fault, self.good, folder)
        requeue = (folder / fault.model / "REQUEUE").exists()
        return Outcome(fault, injected.exists(), status, seconds, folder, tuple(problems), requeue)

    def resume(self, outcomes: list[Outcome]) -> dict[Outcome, list[str]]:
        """Resume all trainings after their faults; return the differences from undisturbed ones."""
        mine = [outcome for outcome in outcomes if outcome.fault.verb == "train"]
        self.several([self.command("train", o.fault.model, o.folder) for o in mine])
        return {o: compare_runs(self.good / o.fault.model, o.folder / o.fault.model) for o in mine}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=_environment(), cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"an undisturbed job failed: {done.stderr}")


def _mpiexec() -> list[str]:
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise FileNotFoundError("no mpiexec found")
    return [found, "-n", str(RANKS)]


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_", "HPCGNN_"))}
    return kept | {"OMP_NUM_THREADS": "1", "HPCGNN_TIMEOUT": "120"}


def _living(mark: str) -> list[int]:
    """Return the processes of the job with this mark, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{_MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _await_end(
    job: subprocess.Popen[bytes], mark: str, injected: Path
) -> tuple[int, float, list[int]]:
    """Return the job's status, seconds from the signal to its end, and processes it had to kill."""
    end = time.time() + 240
    while time.time() < end and (job.poll() is None or _living(mark)):
        time.sleep(0.05)
        if injected.exists() and time.time() > injected.stat().st_mtime + SOON_STOPPED:
            break
    seconds = time.time() - injected.stat().st_mtime if injected.exists() else 0.0
    left = _living(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return job.wait(), seconds, left
