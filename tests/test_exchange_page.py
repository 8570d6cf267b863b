"""The code in docs/exchange.md runs, in this process."""

from __future__ import annotations

import shlex

from tests.test_readme import blocks


def test_the_code_of_the_page_runs(mpirun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (code for _, code in blocks("python", "docs/exchange.md"))
    names: dict[str, object] = {}
    exec(first, names)
    commands = [code for remark, code in blocks("sh", "docs/exchange.md") if not remark]
    for line in "".join(commands).splitlines():
        program, *options = shlex.split(line)
        done = mpirun(0, *options)
        assert program == "hpcgnn" and done.returncode == 0, done.stderr
    exec(second, names)
    model, data = names["model"], names["data"]
    assert model(data.x, data.edge_index).shape == (4, 2)
