"""The documentation: commands run or parse, links have targets.

README.md's script trains; messages and options in docs exist.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hpcgnn
from hpcgnn.cli.main import SERIAL, VERBS
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.train.config import Config
from tests.cli.verbs import call

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)
NOT_RUN = "not run by the tests: "
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(language: str, document: str = "README.md") -> list[tuple[str, str]]:
    """Return `(remark, code)` of each block of a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [(remark, code) for remark, found, code in BLOCK.findall(text) if found == language]


@pytest.fixture
def shell(loaded_python, tmp_path):
    """`shell(script)`: runs it in an empty folder where `hpcgnn` and `mpiexec` are in PATH.

    `folder`: another one.
    """
    beside = Path(sys.executable).parent
    if not (beside / "mpiexec").exists() and shutil.which("mpiexec") is None:
        pytest.skip("no mpiexec found")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, options in (("hpcgnn", "-m hpcgnn"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{loaded_python}" {options} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_"))}
    path = os.pathsep.join([str(programs), str(beside), kept["PATH"]])
    kept |= {"PATH": path, "OMP_NUM_THREADS": "1"}

    def run(script: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=kept,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def commands(script: str) -> Iterator[tuple[int, list[str]]]:
    """Yield `(ranks, words)` of each line of a script of commands; 0 ranks without mpiexec."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        ranks = 0
        if words[:2] == ["mpiexec", "-n"]:
            ranks, words = int(words[2]), words[3:]
        if words:
            assert words[0] == "hpcgnn", line
            yield ranks, words[1:]


def test_commands_of_the_readme_run_on_one_machine(mpirun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    edges = rng.integers(0, 300, (3000, 2))
    np.savetxt(tmp_path / "edges.txt.gz", edges[labels[edges[:, 0]] == labels[edges[:, 1]]], "%d")
    features = rng.normal(size=(300, 8)) + labels[:, None]
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "split.npy", rng.integers(1, 4, 300).astype(np.int8))
    scripts = [code for remark, code in blocks("sh", "docs/your_graph.md") if not remark]
    assert scripts
    if not (list(Path(sys.prefix).rglob("mgmetis/_cython/parmetis*.so"))):
        scripts = [
            code.replace("partition web.h5", "partition web.h5 --method random") for code in scripts
        ]
    out = ""
    for ranks, command in commands("".join(scripts)):
        done = mpirun(ranks, *command)
        assert done.returncode == 0, done.stderr
        out += done.stdout
    assert "resuming after epoch 20" in out
    assert "30 of 30" in out and "predictions of 300 nodes" in out
    lines = (tmp_path / "runs" / "web" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 30


def test_the_first_commands_learn(mpirun, tmp_path, monkeypatch):
    """With the defaults of `generate` and `train`, 90 % of all nodes are right after 20 epochs."""
    monkeypatch.chdir(tmp_path)
    ((_, code),) = blocks("sh", "docs/index.md")
    out = ""
    for ranks, command in commands(code):
        done = mpirun(ranks, *command)
        assert done.returncode == 0, done.stderr
        out += done.stdout
    best = re.search(r"best valid accuracy ([\d.]+) %", out)
    assert best is not None and float(best[1]) >= 90, out
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 10_001
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()


def test_script_trains_on_two_ranks(shell, mpirun, tmp_path):
    ((_, code),) = blocks("python")
    assert code.count("\n") <= 50
    (tmp_path / "train.py").write_text(code)
    graph = tmp_path / "g.h5"
    sizes = "--nodes 2000 --degree 20 --features 16 --classes 4 --noise 1"
    assert mpirun(0, "generate", "sbm", graph, *sizes.split()).returncode == 0
    for parts in (1, 2):
        options = ("--method", "random", "--parts", parts, "-o", tmp_path / f"g.p{parts}.h5")
        assert mpirun(0, "partition", graph, *options).returncode == 0
    out = shell("for p in 1 2; do mpiexec -n $p python train.py g.p$p.h5; done\n")
    losses = [float(value) for value in re.findall(r"^epoch \d+ loss ([\d.]+)$", out, re.MULTILINE)]
    assert len(losses) == 60
    np.testing.assert_allclose(losses[:30], losses[30:], atol=2e-4)
    assert losses[29] < 0.5 * losses[0]


def test_commands_for_contributors_run(shell):
    scripts = [code for remark, code in blocks("sh", "CONTRIBUTING.md") if not remark]
    assert scripts
    assert all("passed" in shell(code, ROOT) for code in scripts)


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/slurm.md", "docs/accuracy.md"]
)
def test_commands_that_the_tests_do_not_run_are_valid(document):
    kept = [(remark, code) for remark, code in blocks("sh", document) if remark]
    assert kept
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for remark, code in kept:
        assert remark.startswith(NOT_RUN) or remark == "run by .ci/run", remark
        done = subprocess.run(["bash", "-n", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for path in re.findall(r"\b(?:jobs|env)/[\w./-]+", code):
            assert (ROOT / path).is_file(), path
        assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) <= set(targets)
        if not remark.startswith(NOT_RUN):
            ci = (ROOT / ".ci" / "run").read_text()
            assert all(command in ci for command in re.findall(r"^make \w+", code, re.MULTILINE))


@pytest.mark.slow
def test_commands_of_the_page_on_layers_run(comm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, code),) = blocks("sh", "docs/layers.md")
    for line in code.splitlines():
        program, verb, *options = shlex.split(line)
        assert program == "hpcgnn"
        call(comm, importlib.import_module(f"hpcgnn.cli.{verb}"), *options)


def test_every_snippet_runs_or_is_marked_with_a_reason():
    """The snippets of each page are run by a test; those that are not are marked."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    taken = set(re.findall(r'blocks\("(\w+)", "([\w./]+)"\)', tests)) | {("python", "README.md")}
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for language in ("sh", "python"):
            bare = [code for remark, code in blocks(language, name) if not remark]
            assert not bare or (language, name) in taken, (name, bare)
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        commands = r"^    (?:hpcgnn|mpiexec|srun|sbatch|python|make|jobs/|env/).*"
        assert re.findall(commands, prose, re.MULTILINE) == [], name  # in blocks, to be marked


def test_a_graph_written_as_documented_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, code),) = blocks("python", "docs/file_formats.md")
    exec(code, {})
    with GraphFile("ring.h5") as graph:
        graph.verify()
        assert graph.read_rows(0, 3).indices.tolist() == [2, 0, 1]
        assert graph.read_nodes(0, 3).labels.tolist() == [0, 1, -1]


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: ([\w.]+)$", text_of("api.md"), re.MULTILINE)
    assert len(named) == len(set(named))
    wanted = set()
    for module in (hpcgnn, hpcgnn.nn, hpcgnn.tasks, hpcgnn.pyparmetis):
        found = [getattr(module, name) for name in module.__all__ if name != "__version__"]
        wanted |= {f"{o.__module__}.{o.__qualname__}" for o in found if not inspect.ismodule(o)}
    assert wanted - set(named) == set()
    for name in named:
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last).__doc__, name


def anchors(text: str) -> set[str]:
    """Return the anchors of a document, as GitHub makes them from the headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_link_targets_exist(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        found = document.parent / path if path else document
        assert found.is_file(), target
        if heading:
            assert heading in anchors(found.read_text(encoding="utf-8")), target


def test_files_named_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", text)
    assert named
    for path in named:
        assert "NAME" in path or (ROOT / path).exists(), path


def test_the_changelog_and_the_citation_have_dates():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[\w.]*)\](.*)$", log, re.MULTILINE)
    assert released and all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in released)
    version, date = released[0]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date.removeprefix(' - ')}\n" in citation


def test_documented_messages_exist_in_the_program():
    table = text_of("failures.md").partition("| message |")[2]
    sources = [*(ROOT / "src").rglob("*.py"), ROOT / "jobs" / "launch.sh"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r'"\s*\\?\n\s*f?"', "", text)  # literals that continue in the next line
    rows = [line.split("|")[1] for line in table.splitlines()[1:] if line.startswith("|")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 20
    for message in messages:
        assert message in text, message


def test_documented_verbs_and_options_exist_in_the_program():
    text = text_of("options.md")
    table = text[text.index("| verb |") : text.index("## Options of")]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert [verb for verb, _ in rows] == list(VERBS)
    alone = [v for v in SERIAL if not hasattr(importlib.import_module(f"hpcgnn.cli.{v}"), "SHARED")]
    assert [verb for verb, ranks in rows if ranks == "no"] == alone
    table = text[text.index("| option |") :]
    defaults = {f"--{name.replace('_', '-')}": value for name, value in Config().flat().items()}
    for line in table.splitlines()[2:]:
        if line.startswith("|"):
            names = re.findall(r"`(--[\w-]+)`", line.split("|")[1])
            values = [value.strip() for value in line.split("|")[2].split(",")]
            shown = [
                "no" if v is False else f"{v:g}" if isinstance(v, float) else str(v)
                for v in (defaults[name] for name in names)
            ]
            assert values == shown, line
