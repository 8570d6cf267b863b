"""`hpcgnn doctor`: its findings and its exit status."""

from __future__ import annotations

import pytest
import torch

from hpcgnn.cli import doctor
from hpcgnn.kernels import selftest


def lines(out: str) -> dict[str, str]:
    return {line.split()[1]: line.split()[0] for line in out.splitlines()[:-1]}


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_complete_installation_passes(mpirun, ranks, tmp_path):
    done = mpirun(ranks, "doctor", "--folder", tmp_path, alone=ranks == 0)
    states = lines(done.stdout)
    for subject in ("python", "mpi", "mpiexec", "hdf5", "kernels", "folder", "allreduce", "ring"):
        assert states.pop(subject) == "ok", done.stdout
    bad = "bad" in states.values()
    assert done.returncode == int(bad) and done.stderr == ""
    assert set(tmp_path.iterdir()) == set()


def test_broken_parts_are_named_on_each_rank(mpirun, tmp_path):
    env = {"HPCGNN_PARMETIS": str(tmp_path)}
    done = mpirun(2, "doctor", "--folder", tmp_path / "nowhere", env=env)
    states = lines(done.stdout)
    assert done.returncode == 1
    assert states["parmetis"] == states["folder"] == "bad"
    assert states["ring"] == "ok"


def test_without_mpi_the_rest_is_checked(mpirun):
    done = mpirun(0, "doctor", env={"MPI4PY_LIBMPI": "/no/libmpi.so"})
    states = lines(done.stdout)
    assert done.returncode == 1 and done.stderr == ""
    assert states["mpi"] == "bad" and states["kernels"] == states["hdf5"] == "ok"


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("HYDRA build details:\n    Version: 5.0.2", "MPICH"),
        ("mpiexec (Open MPI) 4.1.4", "Open MPI"),
        ("mpiexec (Open MPI) 5.0.11rc1", "Open MPI"),
        ("aprun 6.1", None),
    ],
)
def test_the_vendor_of_mpiexec_is_recognised(text, vendor):
    assert doctor._vendor_of(text) == vendor


def test_kernels_of_a_device_are_compared_one_by_one(monkeypatch):
    cpu = torch.device("cpu")
    assert [finding.state for finding in doctor.gpu_kernels(cpu)] == ["ok"]
    wrong, right = selftest.results(cpu), selftest.results(cpu)
    wrong["dropout"][0][0, 0] += 1
    given = iter([wrong, right])
    monkeypatch.setattr(selftest, "results", lambda device: next(given))
    found = [str(finding) for finding in doctor.gpu_kernels(cpu)]
    assert len(found) == 1 and found[0].startswith("bad   gpu        dropout: ")
