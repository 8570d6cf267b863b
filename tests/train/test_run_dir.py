from __future__ import annotations

import fcntl
import json
import os

import pytest

from hpcgnn.errors import InputError, OutputError
from hpcgnn.train.config import Config
from hpcgnn.train.journal import Journal
from hpcgnn.train.run_directory import held, write_config


@pytest.mark.mpi
def test_only_one_job_at_a_time_uses_a_run_directory(comm, shared_path):
    run_dir = shared_path / "new" / "run"
    with held(run_dir, comm):
        comm.barrier()
    other = os.open(run_dir, os.O_RDONLY)
    if comm.rank == 0:
        fcntl.flock(other, fcntl.LOCK_EX)
    with (
        pytest.raises(InputError, match=r"run: another job trains in this run directory"),
        held(run_dir, comm, patience=0),
    ):
        pass
    os.close(other)
    comm.barrier()
    with held(run_dir, comm, patience=0):
        comm.barrier()


@pytest.mark.mpi
def test_config_json_is_replaced_as_a_whole_or_not_at_all(comm, shared_path):
    for hidden in (7, 9):
        write_config(shared_path, comm, Config.of(hidden=hidden))
        assert json.loads((shared_path / "config.json").read_text())["hidden"] == hidden
        comm.barrier()
    with pytest.raises(OutputError, match="no such folder"):
        write_config(shared_path / "none", comm, Config())
    assert [path.name for path in shared_path.iterdir()] == ["config.json"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", '{"model_type": "bert"}', "was not written by a run of hpcgnn"),
        ("config.json", "notes", "was not written by a run of hpcgnn"),
        ("metrics.jsonl", '{"epoch": 1, "loss": 0.5}\n', "was not written by a run of hpcgnn"),
        ("metrics.jsonl", None, "is not a regular file"),
        ("starts.jsonl", '{"epoch": 1}\n', "was not written by a run of hpcgnn"),
        ("ranks.jsonl", '{"name": "mine"}\n', "was not written by a run of hpcgnn"),
        ("ENDED", "notes", "was not written by a run of hpcgnn"),
        ("REQUEUE", "notes", "was not written by a run of hpcgnn"),
        ("rank-00000.json", "{}", "was not written by a run of hpcgnn"),
    ],
)
def test_files_written_by_others_are_not_replaced(comm, shared_path, name, text, words):
    """None stands for a pipe, which must not block."""
    path = shared_path / ("profile" if name.startswith("rank-") else "") / name
    if comm.rank == 0:
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path) if text is None else path.write_text(text)
    comm.barrier()
    for fresh in (True, False):
        with (
            pytest.raises(InputError, match=f"{name}: {words}"),
            held(shared_path, comm, fresh=fresh),
        ):
            pass
    assert text is None or path.read_text() == text


@pytest.mark.mpi
def test_files_of_a_run_are_recognised(comm, shared_path):
    write_config(shared_path, comm, Config())
    for text in ("", '{"epoch": 1, "lo', '{"epoch": 1, "loss": 1.5, "epoch_seconds": 2.0}\n'):
        if comm.rank == 0:
            (shared_path / "metrics.jsonl").write_text(text)
        comm.barrier()
        with held(shared_path, comm, fresh=True):
            comm.barrier()


def test_nothing_is_written_through_a_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    for name in (".metrics.jsonl.tmp", "metrics.jsonl.tmp"):
        (tmp_path / name).symlink_to(target)
    Journal(tmp_path / "metrics.jsonl", 0).write({"epoch": 1})
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "metrics.jsonl").symlink_to(target)
    with pytest.raises(OutputError, match=r"metrics.jsonl: can't be replaced, since it is a link"):
        Journal(linked / "metrics.jsonl", 0)
    assert target.read_text() == "precious"


@pytest.mark.mpi
def test_links_to_files_of_another_run_are_refused(comm, shared_path):
    written = {
        "starts.jsonl": '{"time": "now", "from_epoch": 1}\n',
        "metrics.jsonl": '{"epoch": 1, "epoch_seconds": 2.0}\n',
    }
    for name, text in written.items():
        if comm.rank == 0:
            (shared_path / f"other-{name}").write_text(text)
            (shared_path / name).symlink_to(f"other-{name}")
        comm.barrier()
        with pytest.raises(InputError, match=f"{name}: is a link"), held(shared_path, comm):
            pass
        assert (shared_path / f"other-{name}").read_text() == text
        comm.barrier()
        if comm.rank == 0:
            (shared_path / name).unlink()
        comm.barrier()


@pytest.mark.mpi
def test_a_folder_in_place_of_a_marker_file_is_refused(comm, shared_path):
    path = shared_path / "REQUEUE"
    if comm.rank == 0:
        path.mkdir()
    comm.barrier()
    for fresh in (True, False):
        with (
            pytest.raises(InputError, match="REQUEUE: is not a regular file"),
            held(shared_path, comm, fresh=fresh),
        ):
            pass


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["best.h5", "last.h5"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_checkpoints_that_cannot_be_replaced_are_refused_before_training(
    comm, shared_path, name, kind
):
    path = shared_path / "checkpoints" / name
    if comm.rank == 0:
        path.parent.mkdir()
        if kind == "link":
            path.symlink_to(shared_path / "nowhere")
        else:
            os.mkfifo(path) if kind == "pipe" else path.mkdir()
    comm.barrier()
    with pytest.raises(OutputError, match=f"{name}: .*(link|pipe|folder)"), held(shared_path, comm):
        pass


@pytest.mark.mpi
def test_a_run_directory_that_cannot_be_created_is_refused_on_all_ranks(comm, shared_path):
    if comm.rank == 0:
        (shared_path / "file").write_text("")
    comm.barrier()
    with (
        pytest.raises(OutputError, match="can't be written"),
        held(shared_path / "file" / "run", comm),
    ):
        pass
    with (
        pytest.raises(InputError, match="file: is not a folder: choose another --run-dir"),
        held(shared_path / "file", comm),
    ):
        pass
