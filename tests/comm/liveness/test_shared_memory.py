"""The check of the free space in /dev/shm before MPI starts."""

from __future__ import annotations

import pytest

from hpcgnn.comm.liveness import shared_memory
from hpcgnn.comm.liveness.shared_memory import Space
from hpcgnn.errors import InputError

MIB = 1 << 20


@pytest.fixture
def node(monkeypatch):
    """Return `node(space, rank, ranks)`, which runs the check of that rank."""

    def look(space: Space | None, rank: int, ranks: int) -> None:
        monkeypatch.setattr(Space, "here", classmethod(lambda cls: space))
        monkeypatch.setenv("MPI_LOCALRANKID", str(rank))
        monkeypatch.setenv("MPI_LOCALNRANKS", str(ranks))
        shared_memory.check()

    return look


@pytest.mark.parametrize("space", [None, Space(0, 0), Space(1 << 34, 1 << 33)])
def test_enough_shared_memory_gives_no_warning(node, space, capsys):
    node(space, 0, 128)
    assert capsys.readouterr().err == ""


def test_little_shared_memory_is_a_warning_of_one_rank(node, capsys):
    for rank in range(4):
        node(Space(64 * MIB, 16 * MIB), rank, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hpcgnn: warning: /dev/shm has 16 of 64 MiB free for 4 ranks")


@pytest.mark.parametrize("rank", [0, 3])
def test_too_little_shared_memory_is_an_error_on_all_ranks(node, rank):
    with pytest.raises(InputError, match="/dev/shm has 1 of 1 MiB free for 4 ranks"):
        node(Space(MIB, MIB), rank, 4)


@pytest.mark.parametrize(
    ("tasks", "node", "place"),
    [
        ("2(x3),1", "0", (1, 2)),
        ("2(x3),1", "2", (1, 2)),
        ("2(x3),3", "3", (1, 3)),
        ("2(x3),1", "9", (1, 2)),
        ("4", "", (1, 4)),
        ("", "0", (0, 1)),
        ("many", "0", (0, 1)),
    ],
)
def test_the_place_of_a_rank_on_its_node_under_slurm(tasks, node, place, monkeypatch):
    monkeypatch.setenv("SLURM_NODEID", node)
    for name in ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    assert shared_memory.local_place() == place
