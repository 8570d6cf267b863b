"""Programs that the package runs: none from the current folder."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcgnn.errors import InputError
from hpcgnn.kernels.cuda import launch
from hpcgnn.system import find_program

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a program and a module that write the file `ran`."""
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    (tmp_path / "types.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_programs_are_searched_only_in_absolute_folders(folder, monkeypatch):
    monkeypatch.setenv("PATH", ":.:/nowhere:")
    assert find_program("squeue") is None
    monkeypatch.setenv("PATH", f".:{folder}")
    assert find_program("squeue") == str(folder / "squeue")


def test_job_scripts_run_no_code_of_the_submit_folder(folder, tmp_path):
    script = f"source {ROOT}/jobs/launch.sh; serial --version; python - <<<'import types'; squeue"
    environment = os.environ | {
        "PATH": f".:{os.environ['PATH']}:",
        "PYTHONPATH": f":{os.environ.get('PYTHONPATH', '')}:.",
        "LD_LIBRARY_PATH": "lib:",
        "HPCGNN_HOME": str(ROOT),
        "HPCGNN_VENV": str(Path(sys.prefix)),
    }
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "hpcgnn " in done.stdout, done.stderr
    assert not (folder / "ran").exists()


CONVERT = """--features 'kind,f*' --na "not known\""""


@pytest.mark.parametrize("source", ["web.txt", "web.h5"])
def test_the_pipeline_can_be_submitted_again(tmp_path, source):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nprintf '%s|' \"$@\" >> submitted\necho >> submitted\necho 7\n")
    sbatch.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HPCGNN_HOME": str(ROOT), "HPCGNN_PROFILE": "plain"}
    subprocess.run(
        ["bash", ROOT / "jobs/pipeline.sh", "--convert", CONVERT, source, "web"],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=60,
    )
    verbs = ["partition", "train", "predict"]
    verbs = verbs if source.endswith(".h5") else ["convert", *verbs]
    jobs = (tmp_path / "submitted").read_text().splitlines()
    assert len(jobs) == len(verbs)
    for verb, job in zip(verbs, jobs, strict=True):
        assert f"jobs/{verb}.sbatch" in job
        assert ("--force" in job.split("|")) == (verb != "train")  # which goes on by itself
    assert ("|--features|kind,f*|--na|not known|" in jobs[0]) == (verbs[0] == "convert")


def test_a_relative_kernel_cache_is_refused(monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", "cache")
    with pytest.raises(InputError, match="CUPY_CACHE_DIR must be absolute"):
        launch._cupy.__wrapped__()


@pytest.mark.mpi
def test_the_growth_script_measures(comm, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["growth.py", "400"])
    threads = torch.get_num_threads()
    runpy.run_path(str(ROOT / "jobs/growth.py"))["main"](comm)
    torch.set_num_threads(threads)
    lines = capfd.readouterr().out.splitlines()[1:]
    assert len(lines) == (0 if comm.rank else 7 + 4 * (comm.size > 1))
    number = r" +-?\d+\.\d\d"
    shown = rf" exponent{number}(, of numbers{number})?   \(\d"
    assert all(re.search(shown, line) for line in lines)


def test_the_overlap_script_measures(monkeypatch, capsys):
    """Epochs take 3 s, of which 1 s is waiting; over a link they take work plus transfer."""
    program = runpy.run_path(str(ROOT / "jobs/overlap.py"))
    main, links = program["main"], []

    def train(part, ranks, options, epochs, link):
        links.append(link)
        sent = {"mean": 3e6, "max": 4e6}
        record = {"evaluate_seconds": 0.5, "comm_wait_seconds": {"mean": 1.0}, "bytes_sent": sent}
        bandwidth = float(link.partition("MB/s")[0]) * 1e6 if link else 4e6
        return [record | {"epoch_seconds": 0.5 + 2 + 4e6 / bandwidth}] * epochs

    monkeypatch.setitem(main.__globals__, "train", train)
    monkeypatch.setattr(sys, "argv", ["overlap.py", "g.p2.h5", "--balance", "1", "2"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert links == ["", "2.000MB/s,5us", "4.000MB/s,5us"]
    assert lines[0].startswith("2 ranks, 4 MB sent by the busiest, undelayed: 3.000 s")
    assert lines[-2:] == [
        "| 2 MB/s | 4.000 s | 2.000 s | 2.000 s | 2.00 | 0.00 |",
        "| 4 MB/s | 3.000 s | 2.000 s | 1.000 s | 1.50 | 0.00 |",
    ]
