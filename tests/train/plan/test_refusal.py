"""Errors when memory runs out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hpcgnn.errors import OutOfMemoryError
from hpcgnn.train.config import Config
from hpcgnn.train.plan import refusal
from hpcgnn.train.plan.estimate import estimate
from hpcgnn.train.plan.shapes import largest_of, shape_of
from tests.graphs import distribute, random_graph

CPU = torch.device("cpu")
GPU_TEXT = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 39.39 GiB of "
    "which 1.02 GiB is free."
)
CPU_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes."


def test_the_requested_size_is_parsed_from_torchs_message():
    assert refusal.requested(GPU_TEXT) == 3 * 2**29
    assert refusal.requested(CPU_TEXT) == 8 * 10**9
    assert refusal.requested("out of memory") == 0


@pytest.mark.mpi
def test_a_full_gpu_is_reported_with_numbers_in_one_line(comm, monkeypatch):
    graph, config = distribute(random_graph(4000, 30000, width=50), comm), Config.of(device="cuda")
    own = estimate(largest_of(shape_of(graph), comm.size), config).peak
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=own // 2)
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: own // 3)
    with pytest.raises(OutOfMemoryError) as caught, refusal.explained(graph, config, CPU):
        raise torch.OutOfMemoryError(GPU_TEXT)
    text = str(caught.value)
    assert f"rank {comm.rank} asked for 1.6 GB" in text
    assert "--hidden need less" in text and "\n" not in text
    assert caught.value.exit_status == 5


@pytest.mark.mpi
def test_the_error_names_the_estimated_number_of_ranks(comm):
    graph, config = distribute(random_graph(4000, 30000, width=50), comm), Config.of(device="cuda")
    full = estimate(largest_of(shape_of(graph), comm.size), config).peak
    fixed = estimate(largest_of(shape_of(graph), 10**6), config).peak
    limit = fixed + (full - fixed) // 3
    needed = refusal.ranks_that_fit(graph, config, limit=limit, lacked=0)
    assert needed > comm.size
    assert estimate(largest_of(shape_of(graph), needed), config).peak <= limit
    assert estimate(largest_of(shape_of(graph), needed - 1), config).peak > limit
    more = refusal.ranks_that_fit(graph, config, limit=limit, lacked=int(1.05 * full))
    assert more is None or more >= needed
    assert refusal.ranks_that_fit(graph, config, limit=1, lacked=0) is None
    assert "no number of ranks" in refusal.refusal(0, 1, 2, 3, None)
    assert refusal.refusal(0, 1, 2, 3, 4, "buy more").endswith("; buy more")


def test_only_lack_of_memory_is_explained(comm):
    graph = distribute(random_graph(10, 10), comm)
    with pytest.raises(OutOfMemoryError, match=r"8\.0 GB of host memory"):  # noqa: SIM117
        with refusal.explained(graph, Config(), CPU):
            raise RuntimeError(CPU_TEXT)
    with pytest.raises(RuntimeError, match="shapes"), refusal.explained(graph, Config(), CPU):
        raise RuntimeError("shapes differ")
