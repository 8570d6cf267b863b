"""Files are whole under their name or not there: disk full, limits, missing folders, interrupts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.errors import OutputError
from hpcgnn.storage import atomic
from hpcgnn.storage.graph_writer import GraphWriter

LIMITED = """
import resource, sys
import numpy as np
from hpcgnn.errors import OutputError
from hpcgnn.storage.graph_writer import GraphWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with GraphWriter(sys.argv[1], num_nodes=1000, compress=sys.argv[3] == "1") as writer:
        for _ in range(10):
            writer.append_rows(np.full(100, 5000), np.random.randint(0, 1000, 500_000))
except OutputError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("limit", [0, 100, 5_000, 3_000_000])
@pytest.mark.parametrize("compress", [0, 1])
def test_a_file_size_limit(tmp_path, limit, compress):
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
def test_a_full_disk_at_any_moment(tmp_path, monkeypatch, after, call):
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
def test_a_folder_that_takes_no_file(tmp_path, where):
    (tmp_path / "text").write_text("")
    with pytest.raises(OutputError) as caught, GraphWriter(tmp_path / where, num_nodes=1):
        pytest.fail("must not get here")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interruption_leaves_nothing(tmp_path, kind):
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
