"""Fixtures for tests on one rank, under mpiexec, and through the command line.

A test marked `mpi` runs on whatever number of ranks pytest was started with
(`mpiexec -n 3 python -m pytest tests -m mpi`); the first failing rank ends the job.
"""

from __future__ import annotations

import gc
import io
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import forked
from tests.standing_job import StandingJob

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Modules and tests are never freed: searching them for garbage takes a sixth of the start.
gc.disable()
# A shell ignores Ctrl-C for what it starts in the background, nohup SIGHUP, and tests send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Fixtures that start processes, compile or read real graphs: `--quick` leaves out their tests.
SLOW_FIXTURES = {"data", "emulated", "faulty", "loaded_python", "machine", "mpirun", "python"}
SLOW_FIXTURES |= {"shell", "slurm"}
QUICK_CASES = 4  # cases of a test that `--quick` runs


# The files that take longest, which are started first if several processes share the files.
LONGEST = (
    "test_faults",
    "test_gpu",
    "test_readme",
    "test_cuda_emulated",
    "test_plan",
    "test_accuracy",
    "test_failure",
    "test_smoothing",
    "test_resume_rules",
    "test_examples_layers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out tests that start processes, compile, read real graphs or are marked slow, "
        f"and all but {QUICK_CASES} cases of a test",
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On several ranks, do not import files without a test marked `mpi`."""
    if _num_ranks() == 1 or not collection_path.match("test_*.py"):
        return None
    return "mark.mpi" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.stem))
    if _num_ranks() == 1:
        _leave_out(config, items, [i for i in items if i.get_closest_marker("several_ranks")])
    if not config.getoption("--quick"):
        return
    quick = {item.nodeid for item in _some_cases(item for item in items if not _is_slow(item))}
    _leave_out(config, items, [item for item in items if item.nodeid not in quick])


def _leave_out(config: pytest.Config, items: list[pytest.Item], out: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=out)
    names = {item.nodeid for item in out}
    items[:] = [item for item in items if item.nodeid not in names]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _place(name: str) -> int:
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None or not SLOW_FIXTURES.isdisjoint(
        getattr(item, "fixturenames", ())
    )


def _some_cases(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield a few cases of each test, the first among them, or all if it is marked `every_case`."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        all_of_them = cases[0].get_closest_marker("every_case") is not None
        yield from cases[:: 1 if all_of_them else math.ceil(len(cases) / QUICK_CASES)]


def _num_ranks() -> int:
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


@pytest.fixture(scope="session", autouse=True)
def short_naps() -> None:
    """Let ranks that share cores sleep only briefly in waits: messages of tests are short."""
    if _num_ranks() > (os.cpu_count() or 1):
        from hpcgnn.comm.liveness import wait

        wait.LONGEST_SLEEP = 2e-4


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Replace `fsync`, which may take 10 ms: files of tests need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="session")
def comm() -> Iterator[object]:
    """One communicator for all tests, since it takes many messages to make one.

    `tests/comm` makes one per test. A test that leaves it unusable must make its own.
    """
    from hpcgnn.comm.communicator import Communicator

    communicator = Communicator(timeout=120)
    yield communicator
    communicator.close()


@pytest.fixture
def shared_path(comm, tmp_path_factory) -> Path:
    """A new folder, the same on all ranks."""
    path = tmp_path_factory.mktemp("shared") if comm.rank == 0 else None
    return comm.broadcast(path)


@pytest.fixture(scope="session")
def pyg() -> ModuleType:
    """PyTorch Geometric's layers; imported only if used, since that takes as long as many tests."""
    module: ModuleType = pytest.importorskip("torch_geometric.nn")
    return module


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if (
        _num_ranks() > 1
        and call.excinfo is not None
        and not call.excinfo.errisinstance(pytest.skip.Exception)
    ):
        print(f"\n=== {item.nodeid}: {call.excinfo.exconly()}", file=sys.stderr)
        traceback.print_tb(call.excinfo.value.__traceback__, limit=-8)
        sys.stderr.flush()
        time.sleep(1)  # otherwise the launcher loses the last output
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)
    return outcome


def launcher(ranks: int) -> list[str]:
    """Return the start of a command that runs a program on this many ranks."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec found")
    return [found, "-n", str(ranks)]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a separate job, with one thread per rank."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_"))}
    return kept | {"OMP_NUM_THREADS": "1"} | more


@pytest.fixture
def gpu() -> torch.device:
    """A CUDA device that CuPy can use too."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy", reason="CuPy is not installed")
    return torch.device("cuda", torch.cuda.current_device())


def _in_this_process(*args: str) -> subprocess.CompletedProcess[str]:
    from hpcgnn.cli.main import main

    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2)
    )
    with torch.random.fork_rng(devices=[]), redirect_stdout(out), redirect_stderr(err):
        status = main(list(args))
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(args, status, *texts)


@contextmanager
def forks(*loaded_first: str, **more: str) -> Iterator[str]:
    """Yield the path of a `python` that has already loaded PyTorch: see tests/forked.py.

    Its folder `bin` also holds the launchers that the job scripts need in an environment.

    Args:
        loaded_first: modules whose `load` function is called before.
        more: environment variables for loading them.
    """
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        path, python = f"{folder}/socket", Path(folder, "bin", "python")
        python.parent.mkdir()
        client = shlex.join([sys.executable, "-IS", str(forked.__file__), path])
        python.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
        python.chmod(0o755)
        for pattern in ("mpi*", "hydra*"):
            for other in Path(sys.executable).parent.glob(pattern):
                python.with_name(other.name).symlink_to(other)
        command = [sys.executable, "-m", "tests.forked", path, *loaded_first]
        pipe, root = subprocess.PIPE, Path(__file__).parents[1]
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=environment(**more), cwd=root
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield str(python)


@pytest.fixture(scope="session")
def loaded_python() -> Iterator[str]:
    """A faster `sys.executable`, as in `[loaded_python, "-m", "hpcgnn.cli.main", ...]`.

    It is `sys.executable` itself if PyTorch is built for GPUs, since a fork can't use them.
    """
    with nullcontext(sys.executable) if torch.version.cuda else forks() as python:
        yield python


@contextmanager
def jobs_of(
    module: str, folder: Callable[[str], Path], python: str, **more: str
) -> Iterator[Callable[[int], StandingJob]]:
    """Yield a function that returns the job of `module` on a number of ranks, started once.

    Args:
        folder: makes a folder for a job.
        python: the Python that the ranks run.
        more: environment variables of the ranks.
    """
    started: dict[int, StandingJob] = {}
    root = Path(__file__).parents[1]

    def job(ranks: int) -> StandingJob:
        def start(*place: str) -> subprocess.Popen[bytes]:
            command = [*launcher(ranks), python, "-m", module, *place]
            return subprocess.Popen(command, env=environment(**more), cwd=root)

        if ranks not in started:
            started[ranks] = StandingJob(ranks, folder("job"), start)
        return started[ranks]

    try:
        yield job
    finally:
        for one in started.values():
            one.stop()


@pytest.fixture(scope="session")
def standing_jobs(tmp_path_factory, loaded_python) -> Iterator[Callable[[int], StandingJob]]:
    """`standing_jobs(2)` is a job of 2 ranks that runs one hpcgnn command after the other."""
    with jobs_of("tests.standing_job", tmp_path_factory.mktemp, loaded_python) as job:
        yield job


@pytest.fixture
def mpirun(request) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`mpirun(2, "train", "g.h5")`: `hpcgnn train g.h5` on 2 ranks.

    The ranks belong to a standing job, or to a new job with `alone`, `env` or `module`. With 0
    ranks the command runs without mpiexec, in this process or, with these arguments, in a new one.
    """

    def run(
        ranks: int,
        *args: object,
        timeout: float = 240,
        alone: bool = False,
        env: dict[str, str] | None = None,
        module: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        if not alone and env is None and module is None:
            if not ranks:
                return _in_this_process(*map(str, args))
            job = request.getfixturevalue("standing_jobs")(ranks)
            done: subprocess.CompletedProcess[str] = job.run(*args, timeout=timeout)
            return done
        python = request.getfixturevalue("loaded_python")
        command = [python, "-m", module or "hpcgnn.cli.main", *map(str, args)]
        if ranks:
            command = [*launcher(ranks), *command]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(**(env or {})),
        )

    return run


@pytest.fixture
def parmetis() -> Path:
    """The ParMETIS library; without one, the test is skipped."""
    from hpcgnn.errors import InputError
    from hpcgnn.partition.pyparmetis import builds

    try:
        return builds.find()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test graphs that HPCGNN_TEST_DATA names."""
    folder = os.environ.get("HPCGNN_TEST_DATA")
    if not folder:
        pytest.skip("no test graphs: set HPCGNN_TEST_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"HPCGNN_TEST_DATA={folder}: no such folder")
    return Path(folder)
