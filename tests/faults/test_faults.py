"""Signals at a random rank at fixed places; tests.faults.sweep draws many more at random."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.faults import Outcome, Workplace
from tests.faults.judge import STOPS, Fault
from tests.faults.target import PLACES

FAULTS = [
    Fault("convert", "SIGTERM", 0, "write", 5),
    Fault("partition", "SIGKILL", 1, "write", 9),
    Fault("partition", "SIGSTOP", 0, "exchange", 4),
    Fault("train", "SIGKILL", 1, "backward", 6, 0.002, "gat"),
    Fault("train", "SIGSTOP", 1, "all-reduce", 4),
    Fault("train", "SIGKILL", 0, "write", 45),
    Fault("train", "SIGKILL", 1, "write", 30, 0.0, "embedding"),
    Fault("train", "SIGTERM", 1, "backward", 5),
    Fault("train", "SIGUSR1", 0, "running"),
    Fault("predict", "SIGKILL", 0, "write", 4),
    Fault("predict", "SIGTERM", 1, "forward"),
]
Results = dict[Fault, tuple[Outcome, list[str]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, loaded_python: str) -> Results:
    """Every fault with its outcome, and how its resumed training differs from an undisturbed."""
    try:
        place = Workplace(tmp_path_factory.mktemp("faults") / "work", loaded_python)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    # Ranks that wait for a stopped one leave the cores to the other jobs.
    with ThreadPoolExecutor(1) as beside:
        stopped = beside.map(place.inject, [f for f in FAULTS if f.signal == "SIGSTOP"])
        outcomes = [place.inject(fault) for fault in FAULTS if fault.signal != "SIGSTOP"]
        outcomes += stopped
    resumed = place.resume(outcomes)
    return {o.fault: (o, resumed.get(o, [])) for o in outcomes}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_leave_no_files_and_lose_no_results(results: Results, fault: Fault) -> None:
    outcome, resumed = results[fault]
    assert outcome.injected
    assert not outcome.problems
    assert outcome.requeue == (fault.verb == "train" and fault.signal in STOPS)
    assert not resumed


@pytest.mark.parametrize("place", PLACES)
def test_every_fault_location_exists(place: str) -> None:
    module, owner, function, _ = PLACES[place]
    holder = importlib.import_module(module)
    assert callable(getattr(getattr(holder, owner) if owner else holder, function))
