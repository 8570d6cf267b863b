"""The verb `convert` as a process: memory, files left behind, MPI."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.cli.main import main
from hpcgnn.storage.read.graph_file import GraphFile

COMMAND = [sys.executable, "-m", "hpcgnn.cli.main", "convert"]
MIB = 1 << 20


MEASURED = """
import sys
from hpcgnn.cli.main import main
if main(sys.argv[1:]) == 0:
    facts = dict(line.split(":") for line in open("/proc/self/status"))
    print("peak", int(facts["VmHWM"].split()[0]) - int(facts["RssFile"].split()[0]))
"""


def peak_memory(*args: object) -> int:
    """Return the peak memory of a successful conversion without mapped library files, in bytes."""
    command = [sys.executable, "-c", MEASURED, "convert", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "peak " in done.stdout, done.stderr
    return int(done.stdout.split("peak ")[-1].split()[0]) << 10


def test_pipes_of_the_shell_are_read(tmp_path, capsys):
    ends = [os.pipe(), os.pipe()]
    for k, (_, writer) in enumerate(ends):
        os.write(writer, b"%d %d\n" % (k, k + 1))
        os.close(writer)
    sources = [f"/dev/fd/{reader}" for reader, _ in ends]
    try:
        assert main(["convert", *sources, str(tmp_path / "g.h5"), "--format", "edges"]) == 0
    finally:
        for reader, _ in ends:
            os.close(reader)
    assert "3 nodes, 2 edges" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["g.h5"]


@pytest.mark.parametrize("format", ["planetoid", "ogb", "parquet"])
def test_named_pipes_in_folders_do_not_block(format, tmp_path, capsys):
    folder = tmp_path / "source"
    (folder / "raw").mkdir(parents=True)
    parts = ["x", "y", "tx", "ty", "allx", "ally", "graph", "test.index"]
    for name in (*[f"ind.c.{part}" for part in parts], "raw/num-node-list.csv.gz", "x.parquet"):
        os.mkfifo(folder / name)
    assert main(["convert", str(folder), str(tmp_path / "g.h5"), "--format", format]) == 2
    assert ": is a pipe, device or socket" in capsys.readouterr().err


def write_pairs(path: Path, pairs: np.ndarray, digits: int) -> None:
    """Write lines of two numbers with leading zeros, quickly."""
    with path.open("wb") as file:
        for part in np.array_split(pairs, 64):
            text = part[:, :, None] // 10 ** np.arange(digits - 1, -1, -1) % 10 + ord("0")
            out = np.full((len(part), 2, digits + 1), ord(" "), np.uint8)
            out[:, :, :digits], out[:, 1, digits] = text, ord("\n")
            file.write(out.tobytes())


@pytest.mark.slow
def test_memory_stays_below_the_limit(tmp_path):
    """Ids are renamed and edges reversed, so that every pass uses temporary files."""
    rng = np.random.default_rng(0)
    number = 100_000
    names = np.sort(10**16 + rng.choice(9 * 10**16, number, replace=False))  # of 17 digits
    ends = rng.permutation(np.arange(2 * number) % number).reshape(-1, 2)  # each node at least once
    more = (number * rng.random((2_500_000, 2)) ** [1, 3]).astype(int)
    ends = np.concatenate([ends, more])
    write_pairs(tmp_path / "g.txt", names[ends], 17)
    (tmp_path / "tiny.txt").write_text("0 1\n")
    baseline = peak_memory(tmp_path / "tiny.txt", tmp_path / "tiny.h5")
    out = tmp_path / "g.h5"
    peak = peak_memory(tmp_path / "g.txt", out, "--symmetrise", "--memory", "192MiB")
    assert 2 * ends.nbytes > 75 * MIB  # and sorting takes three times as much
    assert peak < 192 * MIB and peak - baseline < 110 * MIB
    source, destination = np.concatenate([ends, ends[:, ::-1]]).T
    edges = np.sort(destination * number + source)  # by destination, then source
    truth = edges[np.diff(edges, prepend=-1) > 0]
    with GraphFile(out) as graph:
        assert (graph.num_nodes, graph.num_edges) == (number, len(truth))
        found = graph.read_nodes(0, number, ["original_ids"]).original_ids
        rows = graph.read_rows(0, number)
    assert (found == names).all()
    assert (rows.indices == truth % number).all()
    assert (np.repeat(np.arange(number), np.diff(rows.indptr)) == truth // number).all()
    assert {path.name for path in tmp_path.iterdir()} == {"g.txt", "tiny.txt", "tiny.h5", "g.h5"}


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "g.txt").write_text("0 1\n1 2\n")
    return tmp_path / "in" / "g.txt"


@pytest.mark.parametrize("kind", ["numbers", "named"])
def test_the_file_is_the_same_from_any_number_of_ranks(kind, mpirun, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 10**7, (600_000, 2))  # two pieces of text
    names = ["source", "target", "weight"] if kind == "named" else None
    text = "\n".join(f"{a}\t{b}\t{a % 7}" for a, b in ends.tolist())
    options = ["--columns", ",".join(names or "123")]
    (tmp_path / "g.txt").write_text(("\t".join(names) + "\n" if names else "") + text)
    for ranks in (1, 3):
        (tmp_path / f"{ranks}").mkdir()
        monkeypatch.chdir(tmp_path / f"{ranks}")
        done = mpirun(ranks, "convert", "../g.txt", "g.h5", *options)
        assert done.returncode == 0 and "note" not in done.stderr, done.stderr
    assert (tmp_path / "1" / "g.h5").read_bytes() == (tmp_path / "3" / "g.h5").read_bytes()
    with (tmp_path / "g.txt").open("a") as file:
        file.write("\n1\tx\t1")
    bad = mpirun(3, "convert", "../g.txt", "bad.h5", *options)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
    assert f"g.txt: line {600_001 + (kind == 'named')}" in bad.stderr
    assert [path.name for path in (tmp_path / "3").iterdir()] == ["g.h5"]


def test_two_ranks_write_one_file(mpirun, source, tmp_path):
    done = mpirun(2, "convert", source, tmp_path / "g.h5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 nodes, 2 edges") == 1
    with GraphFile(tmp_path / "g.h5") as graph:
        graph.verify()
        assert graph.num_edges == 2
    bad = mpirun(2, "convert", tmp_path / "none.txt", tmp_path / "h.h5", timeout=60)
    assert bad.returncode != 0 and bad.stderr.count("none.txt: no such file") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.h5", "in"]


@pytest.fixture
def run(capfd):
    """Return `run(source, out, "--option", ...)`: exit status and stderr, run in this process."""

    def convert(*args: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main(["convert", *map(str, args)])
        return status, capfd.readouterr().err

    return convert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "40MiB"], "--memory must be at least"),
        (["--memory", "lots"], "not a size"),
        (["--num-nodes", "0"], "--num-nodes must be at least 1"),
        (["--skip-lines", "-1"], "--skip-lines must be at least 0"),
        (["--format", "xml"], "no such --format"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_bad_options_are_refused(run, source, tmp_path, options, message):
    status, said = run(source, tmp_path / "g.h5", *options)
    assert status == 2 and message in said and said.count("\n") == 1


def test_outputs_that_cannot_be_written_are_refused(run, source, tmp_path):
    out = tmp_path / "g.h5"
    out.write_text("precious")
    for target, message in (
        (out, "exists already: choose another name, or use --force"),
        (tmp_path / "none" / "g.h5", "no such folder"),
    ):
        status, said = run(source, target)
        assert status == 2 and message in said
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    (tmp_path / "link.h5").symlink_to(out)
    (tmp_path / "dangling.h5").symlink_to(tmp_path / "new.h5")
    os.mkfifo(tmp_path / "pipe.h5")
    before = sorted(tmp_path.iterdir())
    for target, message in (
        (out, "is not a graph of hpcgnn"),
        (source, "is an input of this command"),
        (tmp_path / "x.npy", "is an input of this command"),
        (tmp_path / "link.h5", "is a link, device, pipe or socket"),
        (tmp_path / "dangling.h5", "is a link, device, pipe or socket"),
        (tmp_path / "pipe.h5", "is a named pipe"),
    ):
        status, said = run(source, target, "--features", tmp_path / "x.npy", "--force")
        assert status == 2 and message in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_text() == "precious" and source.read_text() == "0 1\n1 2\n"
    out.unlink()
    assert run(source, out)[0] == 0
    former = out.read_bytes()
    source.write_text("0 1\n1 x\n")
    assert run(source, out, "--force")[0] == 2
    assert out.read_bytes() == former
    source.write_text("0 1\n")
    assert run(source, out, "--force")[0] == 0
    with GraphFile(out) as graph:
        assert graph.config["format"] == "edges" and graph.config["force"] is True


def test_formats_that_the_name_does_not_show(run, source, tmp_path):
    path = source.rename(source.with_name("graph.dat"))
    status, said = run(path, tmp_path / "g.h5")
    assert status == 2 and "add --format npz|edges|" in said
    assert run(path, tmp_path / "g.h5", "--format", "edges")[0] == 0
    status, said = run(path, path, tmp_path / "h.h5", "--format", "metis")
    assert status == 2 and "the format metis takes one source" in said


@pytest.mark.slow
def test_a_full_disk_leaves_no_file(tmp_path):
    """A limit on file sizes stands for a full disk."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "e.npy", rng.integers(0, 5000, (2, 400_000)))
    for size, option in ((1 * MIB, "200MiB"), (1 * MIB, "4GiB")):
        done = subprocess.run(
            [*COMMAND, str(tmp_path / "e.npy"), str(tmp_path / "g.h5"), "--memory", option],
            capture_output=True,
            text=True,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        assert done.returncode == 2, done.stderr
        assert "can't write temporary data" in done.stderr or "can't be written" in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["e.npy"]


def stop(process: subprocess.Popen, number: int) -> int:
    """Send a signal and wait; send it again, as Python misses one just before a read."""
    for _ in range(6):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=10)
    process.kill()
    return 0


HELD = """
import sys, time
from hpcgnn.cli.main import main
from hpcgnn.storage.importers import assemble
assemble.row_chunks = lambda *_: time.sleep(600)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_leaves_no_files(tmp_path, number):
    """The conversion is paused before the edges are written."""
    (tmp_path / "g.txt").write_text("0 1\n")
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, "convert", str(tmp_path / "g.txt"), str(tmp_path / "g.h5")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == 3  # the source, a temporary folder, the unfinished file
    assert stop(process, number) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["g.txt"]
    how = {
        signal.SIGINT: "convert was interrupted",
        signal.SIGTERM: "error: convert was ended by SIGTERM",
    }
    said = f"hpcgnn: {how[number]}: {tmp_path / 'g.h5'} was not written\n"
    assert process.stderr.read().endswith(said)
