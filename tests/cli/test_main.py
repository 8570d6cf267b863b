"""The command line itself: invalid arguments, and which rank reports them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hpcgnn.cli.main import SERIAL, VERBS, Command, main
from tests.cli.test_places import mpiexec


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e300", "soon"])
def test_the_timeout_must_be_a_number_of_seconds(text, capsys):
    assert main(["train", "g.h5", "--timeout", text]) == 2
    assert "--timeout: must be a number of seconds above 0" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["info", "report"])
def test_a_deleted_working_folder_is_reported(verb, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    status = main([verb, "/no/such"])
    monkeypatch.undo()
    assert status == 2
    assert "error: the working folder can't be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "PIPE"],
        ["convert", "PIPE", "out.h5", "--format", "parquet"],
        ["convert", "edges.txt", "out.h5", "--typed-features", "0=PIPE"],
        ["train", "g.h5", "--config", "PIPE"],
    ],
)
def test_named_pipes_are_refused_without_blocking(arguments, tmp_path, capsys):
    path = tmp_path / "pipe.h5"
    os.mkfifo(path)
    assert main([text.replace("PIPE", str(path)) for text in arguments]) == 2
    assert f"error: {path}: is a named pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "least"), [("convert", 256), ("partition", 640), ("plan", 1024), ("train", 1024)]
)
def test_too_little_address_space_for_the_libraries_is_reported(verb, least, monkeypatch, capsys):
    given = (least << 20) - 1
    monkeypatch.setattr("resource.getrlimit", lambda what: (given, given))
    assert main([verb, "g.h5"]) == 5
    assert f"give at least {least << 10}" in capsys.readouterr().err


def test_a_closed_output_pipe_ends_a_verb_quietly():
    command = (
        f"{sys.executable} -P -m hpcgnn generate sbm /nowhere/g.h5 | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_one_process_that_fails_waits_for_nobody(monkeypatch, capsys):
    def wait(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr("time.sleep", wait)
    assert main(["info", "/no/such.h5"]) == main(["convert", "/no/such.txt", "g.h5"]) == 2
    assert capsys.readouterr().err.count("hpcgnn: error: ") == 2


def test_a_new_model_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"b\xff.py")
    assert main(["new", name]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_are_shortened_to_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.txt").write_text("0 1\n")
    name = "x" * 300
    assert main(["convert", "edges.txt", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hpcgnn: error: {name}: can't be written: File name too long")
    assert err.count("\n") == 1


@pytest.mark.parametrize("rank", [0, 2])
def test_serial_verbs_run_on_rank_0_and_print_a_note(rank, monkeypatch, capsys):
    with monkeypatch.context() as environment:
        environment.setenv("PMI_RANK", str(rank))
        environment.setenv("PMI_SIZE", "4")
        status = main(["info", "/no/such.h5"])
    assert status == (0 if rank else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("hpcgnn: note: info runs on one process: the other ranks do nothing" in err) == (
        not rank
    )
    assert ("/no/such.h5" in err) == (not rank)


@pytest.mark.parametrize("shown", ["--version", "--help", "--print-completion bash"])
def test_what_every_rank_is_asked_to_show_is_printed_once(shown, monkeypatch, capsys):
    pytest.importorskip("shtab")
    monkeypatch.setenv("PMI_SIZE", "4")
    sizes = []
    for rank in range(4):
        monkeypatch.setenv("PMI_RANK", str(rank))
        assert Command.read(shown.split()).helped
        sizes.append(len(capsys.readouterr().out))
    assert sizes[0] > 0 and sizes[1:] == [0, 0, 0]


def test_the_list_of_serial_verbs_is_complete():
    import importlib

    modules = {verb: importlib.import_module(f"hpcgnn.cli.{verb}") for verb in VERBS}
    assert {v for v, module in modules.items() if module.PARALLEL is False} == set(SERIAL)


@pytest.mark.parametrize(
    ("nodes", "degree", "words"),
    [
        ("100", "1e308", "lie in 0 .. 100"),
        ("100", "101", "lie in 0 .. 100"),
        ("2000000", "2e6", "be at most 2^20"),
    ],
)
def test_impossible_degrees_are_refused(nodes, degree, words, tmp_path, capsys):
    arguments = ["generate", "sbm", str(tmp_path / "g.h5"), "--nodes", nodes, "--degree", degree]
    assert main(arguments) == 2
    assert f"--degree must {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "sbm", "out.h5/", "--nodes", "100"),
        ("convert", "edges.txt", "out.h5/"),
        ("partition", "g.h5", "--parts", "2", "-o", "out.h5/"),
        ("predict", "g.h5", "run", "-o", "out.csv/"),
        ("export", "run", "out.pt/."),
        ("report", "run", "-o", "out.html/"),
        ("new", "out.py/"),
        ("bench", "kernels", "--json", "out.json/"),
        ("bench", "kernels", "--plot", "out.svg/"),
        ("bench", "machine", "-o", "out.toml/"),
    ],
)
def test_outputs_that_end_in_a_slash_are_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n")
    assert main(list(arguments)) == 2
    assert "ends in / like the name of a folder, but must name a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["edges.txt"]


TOLD = """
import os, sys
from hpcgnn.cli.main import main
first = os.environ["PMI_RANK"] == "0"
sys.exit(main([*sys.argv[2:], *([] if first else sys.argv[1].split())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--bogus", "rank 1: unrecognized arguments: --bogus; "),
        ("--help", "the ranks have different options: verb is '--help or --version' on rank 1, "),
        ("--seed 3", "the ranks have different options: seed is 3 on rank 1, 0 on rank 0; "),
    ],
)
def test_ranks_with_different_arguments_are_refused(more, line, tmp_path):
    arguments = ["generate", "sbm", tmp_path / "g.h5", "--nodes", "9", "--degree", "2"]
    done = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-c", TOLD, more, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    errors = [text for text in done.stderr.splitlines() if text.startswith("hpcgnn: error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"hpcgnn: error: {line}"), done.stderr


PLANNED = ("--nodes", "9000", "--edges", "1e5", "--features", "8", "--classes", "3", "--ranks", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "arguments", "status"),
    [
        ("plan", PLANNED, 0),
        ("export", ("missing.h5", "weights.pt"), 2),
        ("report", ("missing",), 2),
        ("info", ("missing.h5",), 2),
        ("convert", ("missing.txt", "graph.h5"), 2),
    ],
)
def test_verbs_for_one_process_do_not_start_mpi(verb, arguments, status, loaded_python, tmp_path):
    """It may refuse to start, as on a login node; what fails there is told all the same."""
    code = (
        "import os, sys; from hpcgnn.cli.main import main; status = main(sys.argv[1:]); "
        "print(status, 'mpi4py.MPI' in sys.modules, 'HPCGNN_MPI' in os.environ)"
    )
    command = [loaded_python, "-c", code, verb, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{status} False False", done.stderr
    assert bool(status) == ("hpcgnn: error: " in done.stderr)


@pytest.mark.parametrize(
    ("limit", "verb", "status"),
    [("v 500000", "plan", 5), ("d 100000", "plan", 5), ("n 8", "new", 2)],
)
def test_limits_that_leave_too_little_are_one_line(limit, verb, status, tmp_path):
    command = f"ulimit -{limit}; exec {sys.executable} -m hpcgnn {verb} missing"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    line = f"hpcgnn: error: `ulimit -{limit}` leaves too little for the libraries: give at least "
    assert done.returncode == status and done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
