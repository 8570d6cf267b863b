"""Help texts: examples that parse, options in two steps, suggestions for mistyped words."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcgnn.cli import main as cli
from hpcgnn.cli.help import EVERYDAY, EXAMPLES
from hpcgnn.cli.main import VERBS, main
from hpcgnn.train.config import options


def shown(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_every_verb_has_three_examples_that_parse():
    assert EXAMPLES.keys() == VERBS.keys()
    for verb, lines in EXAMPLES.items():
        assert len(lines) == 3 and verb in lines[0]
        for line in lines:
            words = shlex.split(line)
            if words[0] == "sbatch":
                script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
                words = ["hpcgnn", Path(words[script]).stem, *words[script + 1 :]]
            argv = words[words.index("hpcgnn") + 1 :]
            args = cli._parser({argv[0]: cli._module(argv[0])}, argv).parse_args(argv)
            assert args.verb == argv[0]


@pytest.mark.parametrize("verb", EVERYDAY)
def test_only_help_all_shows_rare_options(verb, capsys):
    short, long = shown(capsys, verb, "--help"), shown(capsys, verb, "--help-all")
    assert f"more options: hpcgnn {verb} --help-all" in short
    assert "more options" not in long and len(short) < 0.75 * len(long)
    rare = {"convert": ["reverse", "ogb_root"]}.get(verb, ["teleport"])
    for name in rare:
        assert f"--{name.replace('_', '-')}" not in short
    for name in rare if verb == "convert" else options():
        assert f"--{name.replace('_', '-')}" in long


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_terminal_of_80_columns(verb, capsys):
    for option in ("--help", "--help-all"):
        lines = shown(capsys, verb, option).splitlines()
        assert [line for line in lines if len(line) > 80] == []


def test_help_loads_nothing_that_takes_seconds():
    script = """
import sys
from hpcgnn.cli.main import VERBS, main
helps = [[verb, option] for verb in VERBS for option in ("--help", "--help-all")]
for argv in (["--help"], ["--version"], *helps):
    assert main(argv) == 0
    for name in ("torch", "scipy", "matplotlib", "rich"):
        if name in sys.modules:
            sys.exit(f"{argv} loads {name}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_option_is_refused_without_mpi():
    script = """
import sys
from hpcgnn.cli.main import VERBS, main
for argv in (*([verb, "--nonsense"] for verb in VERBS), ["bench", "epoch", "--nonsense"]):
    assert main(argv) == 2
    for name in ("mpi4py.MPI", "torch"):
        if name in sys.modules:
            sys.exit(f"{argv} loads {name}")
"""
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr


def test_everyday_options_exist():
    for verb, names in EVERYDAY.items():
        known = {action.dest for action in cli._parser({verb: cli._module(verb)}, []).verb._actions}
        assert names <= known


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "error: no such verb: 'trian': did you mean train?; `hpcgnn --help`"),
        (["help", "train"], "no such verb: 'help': did you mean --help?"),
        (["--resume", "run"], "--resume comes after a verb, as in `hpcgnn train --resume ...`"),
        (["frob"], "no such verb: 'frob': choose one of generate, convert, "),
        ([], "are required: VERB (generate, convert, "),
        (["generate"], "are required: kind (sbm, rmat), OUT.h5; `hpcgnn generate --help`"),
        (["bench", "epohc"], "no such WHAT: 'epohc': did you mean epoch?; `hpcgnn bench --help`"),
        (["convert", "a", "g.h5", "--node", "n"], "--node: did you mean --nodes or --node-array?;"),
        (["train", "g.h5", "--hidden", "abc"], "argument --hidden: must be a whole number: 'abc'"),
        (["train", "g.h5", "--lr", "1,5"], "argument --lr: must be a number: '1,5'"),
        (["train", "g.h5", "--modle", "gat"], "--model?; `hpcgnn train --help`"),
        (
            ["train", "g.h5", "--norm", "bacth"],
            "no such --norm: 'bacth': did you mean batch?; `hpcgnn train --help`",
        ),
        (["partition", "g.h5", "--methd=block"], "did you mean --method?; `hpcgnn partition"),
        (["generate", "smb", "g.h5"], "did you mean sbm?; `hpcgnn generate --help`"),
        (["predict", "g.h5", "run", "--otput", "p.csv"], "--otput: did you mean --output?"),
        (["info", "--zzz", "g.h5"], "unrecognized arguments: --zzz; `hpcgnn info --help`"),
        (
            ["convert", "a.npy", "-o", "g.h5"],
            "-o: the output is named without an option, as OUT.h5",
        ),
        (
            ["train", "g.h5", "--resume", "runs/gat"],
            "--resume takes no value: write `--run-dir runs/gat --resume`, or without a graph "
            "`hpcgnn train runs/gat --resume`;",
        ),
        (["train", "g.h5", "--resume=runs/gat"], "--resume takes no value: write `--run-dir"),
        (
            ["train", "g.h5", "--prune=off"],
            "--prune takes no value, but 'off' follows it: write --prune alone;",
        ),
        (
            ["convert", "e.csv", "g.h5", "--force", "yes"],
            "--force takes no value, but 'yes' follows it",
        ),
        (["train", "g.h5", "--epochs"], "argument --epochs: a value must follow it;"),
        (["plan", "g.h5", "--ranks", "2", "4"], "'4' is one too many: --ranks takes one value;"),
        (["partition", "g.h5", "4"], "'4' is one too many: hpcgnn partition takes GRAPH.h5;"),
        (["bench", "ring", "g.h5"], "'g.h5' is one too many: hpcgnn bench ring takes only options"),
        (
            ["train", "g.h5", "--force"],
            "--force is not an option, since hpcgnn train replaces nothing: continue with "
            "--resume, or",
        ),
        (["predict"], "are required: GRAPH.h5, -o/--output;"),
    ],
)
def test_similar_words_are_suggested(argv, said, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_completion_scripts_are_printed(capsys, tmp_path):
    pytest.importorskip("shtab")
    script = tmp_path / "hpcgnn.bash"
    script.write_text(shown(capsys, "--print-completion", "bash"))
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "graph.h5").touch()
    (tmp_path / "mine.toml").touch()
    for words, found in (
        ("tra", "train"),
        ("train --tele", "--teleport"),
        ("train --norm gr", "graph"),
        ("train gra", "graph.h5"),
        ("train graph.h5 --config mi", "mine.toml"),
        ("generate s", "sbm"),
    ):
        line = ["hpcgnn", *words.split()]
        ask = f'eval "$(cat {script})"; COMP_WORDS=({" ".join(line)}) COMP_CWORD={len(line) - 1}; '
        ask += "$(complete -p hpcgnn | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
        done = subprocess.run(
            [bash, "-c", ask], capture_output=True, text=True, timeout=30, cwd=tmp_path
        )
        assert done.returncode == 0 and done.stdout.strip() == found, done
    assert main(["--print-completion", "cmd"]) == 2
    assert "supports bash" in capsys.readouterr().err


def test_new_writes_a_model_and_keeps_an_existing_file(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["new", str(path)]) == 0
    compile(path.read_text(), str(path), "exec")
    assert f"--model {path}:Net" in capsys.readouterr().out
    assert main(["new", str(path)]) == 2 and main(["new", str(tmp_path / "mine.txt")]) == 2
    assert main(["new", str(tmp_path / "absent" / "mine.py")]) == 2
    path.write_text(path.read_text().replace("class Net", "class Mine"))
    assert main(["new", str(path), "--force"]) == 0 and "class Net" in path.read_text()
    path.write_text("import hpcgnn\n")
    assert main(["new", str(path), "--force"]) == 2 and path.read_text() == "import hpcgnn\n"
    assert "was not written by hpcgnn new" in capsys.readouterr().err
    (kept := tmp_path / "kept.py").write_text("y = 2\n")
    (tmp_path / "link.py").symlink_to(kept)
    assert main(["new", str(tmp_path / "link.py"), "--force"]) == 2
    assert kept.read_text() == "y = 2\n"


def test_job_scripts_are_copied_completely_and_only_once(tmp_path, capsys):
    assert main(["jobs", str(tmp_path)]) == 0
    assert "train.sbatch GRAPH.h5 --run-dir runs/" in "".join(capsys.readouterr())
    names = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert {"train.sbatch", "launch.sh", "pipeline.sh", "profiles"} <= names
    assert (tmp_path / "jobs" / "pipeline.sh").stat().st_mode & 0o100
    assert main(["jobs", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "jobs" / "mine.sh").touch()
    assert main(["jobs", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "jobs" / "mine.sh").exists()  # files of others are kept
    (tmp_path / "jobs" / "sweep.sbatch").unlink()
    (tmp_path / "jobs" / "sweep.sbatch").mkdir()
    assert main(["jobs", str(tmp_path), "--force"]) == 2
    assert "sweep.sbatch: is not a regular file" in capsys.readouterr().err
    (tmp_path / "jobs" / "sweep.sbatch").rmdir()  # still empty
    kept = tmp_path / "kept.sh"
    kept.touch()
    (tmp_path / "jobs" / "launch.sh").unlink()
    (tmp_path / "jobs" / "launch.sh").symlink_to(kept)
    assert main(["jobs", str(tmp_path), "--force"]) == 2 and not kept.stat().st_size
    assert "launch.sh: is a link" in capsys.readouterr().err
    (tmp_path / "jobs" / "launch.sh").unlink()
    (tmp_path / "jobs" / "train.sbatch").write_text("#!/bin/sh\n")  # not ours
    assert main(["jobs", str(tmp_path), "--force"]) == 2
    assert (tmp_path / "jobs" / "train.sbatch").read_text() == "#!/bin/sh\n"
    assert "is not a folder of hpcgnn's job scripts" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["new", "jobs"])
def test_a_full_disk_leaves_no_files(verb, tmp_path, capsys):
    place = tmp_path / ("m.py" if verb == "new" else "jobs")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status = main([verb, str(place if verb == "new" else tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and not place.exists()
    assert capsys.readouterr().err == f"hpcgnn: error: {place}: can't be written: File too large\n"
