"""The `--help` of a verb: examples, everyday options, and all options with `--help-all`."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.settings import nearest

EXAMPLES = {
    "generate": (
        "hpcgnn generate sbm graph.h5",
        "hpcgnn generate sbm graph.h5 --nodes 1000000 --degree 30 --classes 40",
        "mpiexec -n 4 hpcgnn generate rmat big.h5 --nodes 100000000 --degree 20",
    ),
    "convert": (
        "hpcgnn convert edges.csv graph.h5 --source a --target b --nodes nodes.parquet --id name "
        "--label y --features 'x*' --split-ratio 8,1,1",
        "hpcgnn convert edges.txt.gz web.h5 --features features.npy --labels labels.npy",
        "hpcgnn convert graph.pt graph.h5",
    ),
    "partition": (
        "mpiexec -n 4 hpcgnn partition graph.h5",
        "mpiexec -n 4 hpcgnn partition graph.h5 --parts 16 -o graph.p16.h5",
        "srun -n 64 hpcgnn partition graph.h5 --method parmetis",
    ),
    "train": (
        "hpcgnn train graph.h5",
        "mpiexec -n 4 hpcgnn train graph.p4.h5 --model gat --hidden 128 --run-dir runs/gat",
        "srun -n 64 hpcgnn train graph.p64.h5 --config recipe.toml --run-dir runs/big --resume",
    ),
    "predict": (
        "hpcgnn predict graph.h5 runs/graph -o predictions.csv",
        "mpiexec -n 4 hpcgnn predict graph.p4.h5 runs/gat -o predictions.parquet",
        "hpcgnn predict new.h5 runs/graph -o new.csv --any-graph",
    ),
    "export": (
        "hpcgnn export runs/gat weights.safetensors",
        "hpcgnn export runs/gat/checkpoints/last.h5 weights.pt",
        "hpcgnn train graph.h5 --model gat --hidden 128 --init-from weights.safetensors "
        "--run-dir runs/again",
    ),
    "info": (
        "hpcgnn info graph.h5",
        "hpcgnn info graph.p4.h5 --check",
        "hpcgnn info runs/gat/checkpoints/best.h5 --json",
    ),
    "plan": (
        "hpcgnn plan graph.h5 --ranks 8 --memory-per-rank 16GiB",
        "hpcgnn plan graph.p8.h5 --model gat --hidden 128",
        "hpcgnn plan --nodes 111059956 --edges 3.2e9 --features 128 --classes 172 --ranks 16,32,64 "
        "--machine perlmutter-gpu",
    ),
    "report": (
        "hpcgnn report runs/gat",
        "hpcgnn report runs/gat runs/sage -o compared",
        "hpcgnn report runs/gat --json",
    ),
    "doctor": (
        "hpcgnn doctor",
        "mpiexec -n 4 hpcgnn doctor",
        "srun -n 8 hpcgnn doctor",
    ),
    "bench": (
        "hpcgnn bench epoch --model gat --peers .venv-peers/bin/python",
        "hpcgnn bench scale --ranks 1x1 2x1 4x1 --plot scale.svg",
        "mpiexec -n 4 hpcgnn bench machine -o here.toml",
    ),
    "jobs": (
        "hpcgnn jobs .",
        "hpcgnn jobs cluster/",
        "sbatch --nodes=2 --ntasks-per-node=4 jobs/train.sbatch graph.p8.h5 --run-dir runs/big",
    ),
    "new": (
        "hpcgnn new my_model.py",
        "hpcgnn train graph.h5 --model my_model.py:Net",
        "hpcgnn train graph.h5 --model my_model.py:Net --model-args hidden=64,layers=2",
    ),
}

FIRST_STEPS = """first steps, each alone or under mpiexec or srun:

  hpcgnn generate sbm graph.h5        or: hpcgnn convert edges.csv graph.h5
  hpcgnn train graph.h5 --epochs 20   results go to runs/graph
  hpcgnn predict graph.h5 runs/graph -o predictions.csv

`hpcgnn VERB --help` shows examples and options of each verb"""

_WIDTH = 78  # columns of examples
_FEW = 40  # letters of choices that an option shows in place of a value
_ALWAYS = {"help", "help_all", "timeout", "show"}
# Options that --help shows for verbs that have many; all others need --help-all.
EVERYDAY = {
    verb: set(names.split())
    for verb, names in {
        "convert": """
            sources out format force memory features labels split
            nodes source target weight relation edge_features id label
            split_column split_time split_ratio missing like symmetrise
            edge_label link_split
        """,
        "train": """
            graph run_dir resume init_from config changes task
            model model_args layers hidden heads dropout norm embedding
            optimizer lr weight_decay schedule epochs patience metric seed
            split method mode halo_buffer checkpoint_every device precision
        """,
        "plan": """
            graph ranks memory_per_rank json config nodes edges features
            classes labelled machine
            model layers hidden heads mode halo_buffer device precision
        """,
    }.items()
}


class _HelpAll(argparse.Action):
    """The option --help-all, which shows the help of a parser without hidden options."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        parser.print_help()
        parser.exit()


def shape(parser: argparse.ArgumentParser, verb: str, argv: Sequence[str]) -> None:
    """Give a verb's parser its examples, and hide the options that only `--help-all` shows."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shown = "\n".join(_folded(line) for line in EXAMPLES[verb])
    parser.description = f"{parser.description}\n\n{shown}"
    for action in parser._actions:
        if action.option_strings and action.metavar is None:
            _show_value(action)
    everyday = EVERYDAY.get(verb)
    if everyday is not None:
        needed = [action for action in parser._actions if not action.option_strings]
        forms = {"+": "{} ...", "?": "[{}]"}
        names = [forms.get(str(action.nargs), "{}").format(_name(action)) for action in needed]
        parser.usage = " ".join(["%(prog)s [options]", *names])
    text = argparse.SUPPRESS if everyday is None else "with all options"
    kinds: Any = () if parser._subparsers is None else parser._subparsers._group_actions
    for one in (parser, *(kind for action in kinds for kind in action.choices.values())):
        one.add_argument(
            "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=text
        )
    if everyday is None or "--help-all" in argv:
        return
    hidden = 0
    for action in parser._actions:
        if action.dest not in everyday | _ALWAYS:
            action.help = argparse.SUPPRESS
            hidden += 1
    if hidden:
        parser.epilog = f"{hidden} more options: hpcgnn {verb} --help-all"


def _folded(example: str) -> str:
    """Return an example, indented, in lines that fit a terminal; values stay beside options."""
    lines = textwrap.wrap(
        re.sub(r"(--\S+) (?!-)", "\\1\0", example),
        _WIDTH - len(" \\"),
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\0", " ")


def _show_value(action: argparse.Action) -> None:
    """Let an option show the type of its value; many choices are listed in its help."""
    if action.choices is None:
        action.metavar = {int: "N", float: "X"}.get(action.type)  # type: ignore[call-overload]
        return
    choices = [str(choice) for choice in action.choices]
    if len(",".join(choices)) > _FEW:
        action.metavar = action.dest.rpartition("_")[2].upper()
        words = re.findall(r"[\w-]+", action.help or "")
        if not set(choices) <= set(words):
            text = f"one of {', '.join(choices)}"
            action.help = f"{action.help}; {text}" if action.help else text


def explain(parser: argparse.ArgumentParser, message: str, argv: Sequence[str] = ()) -> str:
    """Return argparse's message about `argv`, with the word that was probably meant."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if message.startswith("the following arguments are required: "):
        words = [word.partition("=")[0] for word in argv if word.startswith("--")]
        unknown = [word for word in words if not any(flag.startswith(word) for flag in flags)]
        return _with_choices(parser, message) + "".join(
            f"; no such option: {word}{nearest(word, flags)}" for word in unknown[:1]
        )
    if ": ignored explicit argument " in message:
        name = message.removeprefix("argument ").partition(":")[0].partition("/")[0]
        return _no_value(name, message.rpartition(" argument ")[2].strip("'"))
    if message.startswith("unrecognized arguments: "):
        given = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        if not given.startswith("-"):
            return _too_many(parser, given, list(argv))
        outputs = [action for action in parser._actions if action.dest == "out"]
        if given in ("-o", "--out", "--output") and outputs and not outputs[0].option_strings:
            return f"{message}: the output is named without an option, as {_name(outputs[0])}"
        if given == "--force" and parser._subparsers is None:
            instead = ": continue with --resume, or choose another --run-dir" * (
                "--resume" in flags
            )
            return f"--force is not an option, since {parser.prog} replaces nothing{instead}"
        return message + nearest(given, flags)
    if "invalid choice: " in message:
        return _choice(parser, message, argv)
    if message.startswith("ambiguous option: "):
        given, _, found = message.removeprefix("ambiguous option: ").partition(" could match ")
        return f"{given}: did you mean {found.replace(', ', ' or ')}?"
    message = message.replace(": expected one argument", ": a value must follow it")
    message = message.replace(": expected at least one argument", ": a value must follow it")
    for kind, wanted in (("int", "a whole number"), ("float", "a number")):
        message = message.replace(f": invalid {kind} value: ", f": must be {wanted}: ")
    return message


def _no_value(flag: str, given: str) -> str:
    """Return a message about the value given to an option that takes none."""
    if flag == "--resume":
        return (
            f"--resume takes no value: write `--run-dir {given} --resume`, or without a graph "
            f"`hpcgnn train {given} --resume`"
        )
    return f"{flag} takes no value, but {given!r} follows it: write {flag} alone"


def _too_many(parser: argparse.ArgumentParser, given: str, argv: Sequence[str]) -> str:
    """Return a message about an extra word, depending on the words before it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = next((action.choices[word] for word in argv if word in action.choices), parser)
    before = argv[argv.index(given) - 1] if given in argv else ""
    option = argv[argv.index(given) - 2] if given in argv[2:] else ""
    for action in parser._actions:
        if before in action.option_strings and action.nargs == 0:
            return _no_value(before, given)
        if option in action.option_strings and action.nargs is None:
            return f"{given!r} is one too many: {option} takes one value"
    taken = [_name(action) for action in parser._actions if not action.option_strings]
    return f"{given!r} is one too many: {parser.prog} takes {', '.join(taken) or 'only options'}"


def _choice(parser: argparse.ArgumentParser, message: str, argv: Sequence[str]) -> str:
    """Return a message about an invalid choice, with the nearest choice or else all of them."""
    given = message.partition("invalid choice: ")[2].partition(" (choose")[0].strip("'")
    for action in parser._actions:
        if action.choices and message.startswith(f"argument {_name(action)}:"):
            choices = [str(choice) for choice in action.choices]
            if _name(action) == "VERB":
                if given in ("help", "version"):
                    return f"no such verb: {given!r}: did you mean --{given}?"
                if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
                    return f"{argv[0]} comes after a verb, as in `hpcgnn train {argv[0]} ...`"
            meant = nearest(given, choices) or f": choose one of {', '.join(choices)}"
            name = "verb" if _name(action) == "VERB" else _name(action)
            return f"no such {name}: {given!r}{meant}"
    return message


def _with_choices(parser: argparse.ArgumentParser, message: str) -> str:
    """Return the message with the choices of each required argument."""
    start, _, names = message.partition(": ")
    choices = {_name(a): list(map(str, a.choices)) for a in parser._actions if a.choices}
    shown = [
        f"{name} ({', '.join(choices[name])})" if name in choices else name
        for name in names.split(", ")
    ]
    return f"{start}: {', '.join(shown)}"


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that lets a shell complete verbs and options.

    Raises:
        InputError: unknown shell, or shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs shtab: pip install shtab") from None
    if shell not in shtab.SUPPORTED_SHELLS:
        shells = ", ".join(shtab.SUPPORTED_SHELLS)
        raise InputError(f"--print-completion supports {shells}", value=shell)
    _complete_files(parser, shtab.FILE)
    script: str = shtab.complete(parser, shell)
    return script


def _complete_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Let arguments that take a path be completed by existing files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _complete_files(verb, files)
        elif action.type is Path or (
            action.choices is None and (not action.option_strings or _names_file(action))
        ):
            action.complete = files  # type: ignore[attr-defined]


def _names_file(action: argparse.Action) -> bool:
    return re.search(r"FILE|RUN|TABLE|OUT|\.", str(action.metavar)) is not None


def _name(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest
    return "/".join(action.option_strings) or metavar
