"""Standard output and error that are closed or full."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hpcgnn.cli.streams import _Stream
from hpcgnn.errors import OutputError


@pytest.fixture
def full():
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


def test_a_full_disk_under_the_log_is_reported_once(full, capsys):
    stream = _Stream(full, lossy=True)
    assert stream.write(b"epoch 1\n") == stream.write(b"epoch 2\n") == 8
    assert capsys.readouterr().err == (
        "hpcgnn: warning: standard output can't be written: No space left on device; its lines "
        "are lost\n"
    )


def test_a_full_disk_under_the_result_is_an_error_once(full):
    stream = _Stream(full, lossy=False)
    with pytest.raises(OutputError, match="standard output can't be written: No space left"):
        stream.write(b"result\n")
    assert stream.write(b"again, as Python does at its end") == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "redirection", "status"),
    [
        ("info nope.h5", "2>&-", 2),
        ("info nope.h5", "2> /dev/full", 2),
        ("info nope.h5", ">&- 2>&-", 2),
        ("--version", ">&-", 0),
        ("--version", "> /dev/full", 2),
        ("train --help", "> /dev/full", 2),
        ("--print-completion bash", "> /dev/full", 2),
    ],
)
def test_a_closed_or_full_output_has_the_right_exit_status(
    arguments, redirection, status, tmp_path
):
    command = f"{sys.executable} -m hpcgnn {arguments} {redirection}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)


def test_names_that_are_not_utf_8_can_be_printed(tmp_path):
    name = os.fsdecode(b"g\xe4.h5")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hpcgnn",
            "generate",
            "sbm",
            name,
            "--nodes",
            "200",
            "--degree",
            "2",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0 and "\ng\\udce4.h5: 200 nodes" in done.stdout, done.stderr
