"""The choice of the library that sums gradients of GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hpcgnn.comm import device_sums

pytestmark = pytest.mark.mpi


def test_without_nccl_mpi_sums_and_one_line_says_why(comm, capfd):
    cpu = torch.device("cpu")
    assert device_sums.choose_device_sums(comm, cpu, "mpi") is None
    assert device_sums.choose_device_sums(comm, cpu, "nccl") is None
    told = comm.rank == 0 and comm.size > 1
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["gradients: summed by MPI (no NCCL: it needs GPUs)"] * told


def test_mpi_sums_where_torch_cannot_connect_the_ranks(comm, monkeypatch, capfd):
    """NCCL takes no tensors of the host."""
    monkeypatch.setattr(device_sums, "why_not", lambda *_: "")
    assert device_sums.choose_device_sums(comm, torch.device("cpu"), "nccl") is None
    told = comm.rank == 0 and comm.size > 1
    assert capfd.readouterr().out.startswith("gradients: summed by MPI (no NCCL: ") == told
    assert comm.device_sums is None


@pytest.mark.parametrize(
    ("cards", "has_nccl", "problem"),
    [
        ("one", True, "ranks share a GPU"),
        ("each", False, "this torch is built without it"),
        ("each", True, ""),
    ],
)
def test_reasons(comm, monkeypatch, cards, has_nccl, problem):
    uuid = "shared" if cards == "one" else f"card {comm.rank}"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    found = device_sums.why_not(comm, torch.device("cuda", 0))
    assert found == (problem if comm.size > 1 or cards == "each" else "")


@pytest.mark.gpu
def test_nccl_on_one_rank(gpu, comm):
    if comm.size > 1:
        pytest.skip("NCCL refuses ranks that share a GPU")
    sums = device_sums.DeviceSums.start(comm, gpu, "nccl")
    values = torch.arange(1000.0, device=gpu)
    assert torch.equal(sums.add_up(values.clone(), "test"), values)
    sums.close()
