"""Files are complete or absent: full disks, limits, missing folders, interruptions."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.errors import OutputError
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.graph_writer import GraphWriter

LIMITED = """
import resource, sys
import numpy as np
from hpcgnn.errors import OutputError
from hpcgnn.storage.write.graph_writer import GraphWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with GraphWriter(sys.argv[1], num_nodes=1000, compress=sys.argv[3] == "1") as writer:
        for _ in range(10):
            writer.append_rows(np.full(100, 5000), np.random.randint(0, 1000, 500_000))
except OutputError as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 5_000, 3_000_000])
@pytest.mark.parametrize("compress", [0, 1])
def test_a_file_size_limit_is_reported(tmp_path, limit, compress):
    path = tmp_path / "g.h5"
    path.write_text("a former file")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, str(limit), str(compress)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"refused: {path}: can't be written: File too large")
    assert [p.name for p in tmp_path.iterdir()] == ["g.h5"]
    assert path.read_text() == "a former file"


@pytest.mark.parametrize("after", [0, 1, 5, 20])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_at_any_moment_leaves_no_file(tmp_path, monkeypatch, after, call):
    real, calls = getattr(os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) > (after if call == "pwrite" else 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(OutputError, match="No space left on device"),
        GraphWriter(tmp_path / "g.h5", num_nodes=300) as writer,
    ):
        for _ in range(3):
            writer.append_rows(np.full(100, 5000), np.zeros(500_000, np.int64))
        writer.append_labels(np.zeros(300, np.int64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["absent/g.h5", "text/g.h5", ".", "/proc/g.h5"])
def test_an_unwritable_folder_is_refused(tmp_path, where):
    (tmp_path / "text").write_text("")
    with pytest.raises(OutputError) as caught, GraphWriter(tmp_path / where, num_nodes=1):
        pytest.fail("must not get here")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interruption_leaves_no_file(tmp_path, kind):
    with pytest.raises(kind), atomic.create(tmp_path / "g.h5") as output:
        output.dataset("x", np.dtype("f4"), (10,))[...] = 1
        raise kind
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path):
    former = os.umask(0o027)
    try:
        with atomic.create(tmp_path / "g.h5") as output:
            output.set_attributes({"x": 1})
    finally:
        os.umask(former)
    assert Path(tmp_path / "g.h5").stat().st_mode & 0o777 == 0o640


HOLDER = """
import signal, sys
import numpy as np
from pathlib import Path
from hpcgnn.storage.write import atomic
path = Path(sys.argv[1])
with atomic.claim_folder(path) as folder, atomic.create(path) as output:
    (folder / "records").write_text("spooled")
    output.dataset("x", np.dtype("f4"), (10,))[...] = 1
    output.h5.flush()
    print("written", flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path):
    """A process in the middle of writing g.h5."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "g.h5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def write_once(path: Path) -> None:
    with atomic.create(path) as output:
        output.set_attributes({"x": 1})


def test_the_longest_name_in_non_latin_letters(tmp_path):
    path = tmp_path / ("ä" * 126 + ".h")
    for _ in range(2):
        write_once(path)
    with atomic.claim(path) as temporary:
        assert len(os.fsencode(temporary.name)) < 256
    assert names(tmp_path) == [path.name]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_files_left_by_a_killed_writer_are_removed_by_the_next(tmp_path, holder):
    others = [
        ".g.h5.12345678.txt",
        ".h.h5.12345678.tmp",
        ".g.h5.1234567.tmp",
        ".g.h5.x.12345678.tmp",
    ]
    for name in others:
        (tmp_path / name).write_text("of somebody else")
    file, folder = sorted(tmp_path.glob(".g.h5.????????.tmp"), key=Path.is_dir)
    assert folder.is_dir() and not file.is_dir()
    write_once(tmp_path / "g.h5")
    assert file.exists() and (folder / "records").exists(), "their writer lives"
    holder.kill()
    holder.wait()
    assert file.exists() and folder.exists()
    write_once(tmp_path / "g.h5")
    assert names(tmp_path) == sorted([*others, "g.h5"])


def test_two_writers_of_one_file_do_not_interfere(tmp_path):
    with atomic.create(tmp_path / "g.h5") as first:
        first.set_attributes({"writer": 1})
        with atomic.create(tmp_path / "g.h5") as second:
            second.set_attributes({"writer": 2})
        assert len(names(tmp_path)) == 2
    with h5py.File(tmp_path / "g.h5") as file:
        assert file.attrs["writer"] == 1
    assert names(tmp_path) == ["g.h5"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def unsupported(*args: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".g.h5.12345678.tmp").write_text("perhaps of a living writer")
    write_once(tmp_path / "g.h5")
    assert names(tmp_path) == [".g.h5.12345678.tmp", "g.h5"]


def test_a_file_removed_before_it_was_locked_is_created_again(tmp_path, monkeypatch):
    real, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.glob(".*.tmp"))
            removed[0].unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_once(tmp_path / "g.h5")
    assert removed and names(tmp_path) == ["g.h5"]
