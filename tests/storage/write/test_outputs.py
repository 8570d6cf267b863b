"""Replacing outputs: `force` replaces a file of the same kind, and never anything else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError, OutputError
from hpcgnn.partition import pipeline
from hpcgnn.storage.schema import WHAT
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.atomic import check_output


def make(path: Path, format: str, version: int = 1) -> Path:
    with atomic.create(path) as output:
        output.dataset("a", np.dtype("f4"), (1,))[...] = 1
        output.set_attributes({"format": format, "version": version})
    return path


@pytest.mark.parametrize("format", WHAT)
def test_only_files_of_the_same_kind_are_replaced(tmp_path, format):
    for other in WHAT:
        path = make(tmp_path / f"{other}.h5", other, version=7)  # of a future release
        with pytest.raises(InputError, match=r"exists already: .*--force"):
            check_output(path, format, force=False)
        if other == format:
            check_output(path, format, force=True)
        else:
            with pytest.raises(InputError, match=f"exists and is not a {WHAT[format]} of hpcgnn"):
                check_output(path, format, force=True)
    for force in (False, True):
        check_output(tmp_path / "new.h5", format, force=force, inputs=[None, tmp_path / "x"])


def test_an_input_is_never_replaced(tmp_path):
    path = make(tmp_path / "g.h5", "hpcgnn-graph")
    (tmp_path / "soft.h5").symlink_to(path)
    (tmp_path / "hard.h5").hardlink_to(path)
    for name in ("g.h5", "soft.h5", "hard.h5", "../" + tmp_path.name + "/g.h5"):
        with pytest.raises(InputError, match="is an input of this command"):
            check_output(tmp_path / name, "hpcgnn-graph", force=True, inputs=[path])


def test_files_of_other_kinds_are_never_replaced(tmp_path):
    make(tmp_path / "g.h5", "hpcgnn-graph")
    (tmp_path / "plain.h5").write_text("precious")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.attrs["format"] = 3
    (tmp_path / "soft").symlink_to(tmp_path / "g.h5")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    names = ["plain.h5", "foreign.h5", "soft", "dangling", "pipe", "socket"]
    if os.geteuid() == 0:
        os.mknod(tmp_path / "device", 0o020600, os.makedev(1, 3))
        names.append("device")
    before = {entry: entry.lstat().st_ino for entry in tmp_path.iterdir()}
    for name in names:
        with pytest.raises(HpcgnnError, match=f"{name}: "):
            check_output(tmp_path / name, "hpcgnn-graph", force=True)
        if not name.endswith(".h5"):
            with pytest.raises(OutputError, match=f"{name}: can't be replaced, since it is a"):
                make(tmp_path / name, "hpcgnn-graph")
    assert {entry: entry.lstat().st_ino for entry in tmp_path.iterdir()} == before


def test_a_link_created_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "g.h5"
    with pytest.raises(OutputError, match="since it is a link"), atomic.create(path) as output:
        output.set_attributes({"format": "hpcgnn-graph", "version": 1})
        path.symlink_to(tmp_path / "absent")
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.h5"] and path.is_symlink()


@pytest.mark.parametrize("place", ["/proc/x.h5", "/proc/a/x.h5", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, place, monkeypatch):
    graph = make(tmp_path / "g.h5", "hpcgnn-graph")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(pipeline, "_assembled", lambda *_: pytest.fail("the work began"))
    with pytest.raises(OutputError, match=rf"{place}: .*(can't be (written|made)|is a folder)"):
        pipeline.partition_graph(Communicator.of(), graph, 2, out=tmp_path / place)
    with pytest.raises(OutputError, match="no such folder"):
        check_output(tmp_path / "absent" / "x.h5", "hpcgnn-graph", force=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "g.h5"]
