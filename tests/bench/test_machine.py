"""`bench machine` writes what `plan --machine` reads."""

from __future__ import annotations

import pytest

from hpcgnn.bench import calibration, machine, steps
from hpcgnn.cli import bench, bench_machine
from hpcgnn.errors import InputError, OutputError, printable
from hpcgnn.train.plan.machine import KERNELS, read_machine
from tests.cli.verbs import call

pytestmark = pytest.mark.mpi


def test_a_measured_machine_file_is_read_back(comm, shared_path, monkeypatch):
    for name, value in (
        ("_WIDTHS", (8, 16)),
        ("_ROWS_OF", {"few": 40, "some": 60, "many": 80, "long": 40}),
        ("_SWEEPS", 2),
        ("_PRODUCT_ROWS", 50),
        ("_MESSAGES", (64, 4096)),
        ("_LEAST_SECONDS", 1e-4),
        ("_ROWS", (50, 8)),
        ("_GRAPHS", ((70, 300), (40, 500))),
    ):
        monkeypatch.setattr(machine, name, value)
    for name, value in (("_LEAST", 40), ("_EPOCHS", 2)):
        monkeypatch.setattr(calibration, name, value)
    monkeypatch.setattr(steps, "_EPOCHS", 2)
    out = shared_path / "here.toml"
    name = 'a "test" \\ of Köln\n\udcff\U0001f600'  # a name given as an option may be anything
    call(comm, bench, "machine", "-o", out, "--name", name, "--device", "cpu")
    found = read_machine(str(out))
    assert found.name == printable(name) and f"on {comm.size} ranks" in found.source
    assert found.ranks_per_node == comm.size and found.device == "cpu"
    assert set(found.gathers) == set(KERNELS)
    assert all(min(g.row_seconds.y) > 0 for g in found.gathers.values())
    assert found.products.x == (8, 16) and min(found.products.y) > 0
    assert found.slowdown("gathers", comm.size) > 0 and found.slowdown("gathers", 1) >= 1
    with pytest.raises(InputError, match="exists already"):
        call(comm, bench, "machine", "-o", out)
    if comm.rank == 0:
        bench_machine._check(out, force=True)
        out.write_text("title = 'mine'\n")
    comm.barrier()
    with pytest.raises(InputError, match="was not written by hpcgnn bench machine"):
        call(comm, bench, "machine", "-o", out, "--force")
    assert out.read_text() == "title = 'mine'\n"
    with pytest.raises(InputError, match=r"must end in \.toml"):
        call(comm, bench, "machine", "-o", shared_path / "here.txt")
    monkeypatch.setattr(machine, "measure", None)  # would lose minutes of measuring
    with pytest.raises(OutputError, match="no such folder"):
        call(comm, bench, "machine", "-o", shared_path / "nowhere" / "here.toml")
