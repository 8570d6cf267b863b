"""Every numeric option with absurd values: one line of error, or a correct run."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest

from hpcgnn.cli import bench, train
from hpcgnn.cli.main import VERBS, _module, _parser, main
from hpcgnn.errors import InputError
from hpcgnn.train.config import options, resolve

NONSENSE = ("nan", "inf", "", "1e400", "0x10")
HOSTILE = (*NONSENSE, "1e308", "-1", "0", str(10**30), "9" * 5000)
TEXTS = {  # options that are parsed as text first, then as numbers
    "convert": ("--memory", "--split-ratio", "--link-split"),
    "generate": ("--split",),
    "plan": ("--ranks", "--nodes", "--edges", "--features", "--classes", "--memory-per-rank"),
    "predict": ("--halo-buffer",),
}
BASE = {
    "generate": ("sbm", "o.h5", "--nodes", "30", "--degree", "3", "--classes", "2", "--force"),
    "convert": ("e.txt", "c.h5", "--labels", "y.npy", "--force"),
    "partition": ("g.h5", "--parts", "2", "--method", "random", "-o", "p.h5", "--force"),
    "plan": ("--nodes", "1000", "--edges", "10000", "--features", "4", "--ranks", "2"),
    "predict": ("g.h5", "--label-propagation", "-o", "o.csv", "--force"),
}

pytestmark = pytest.mark.slow


def numeric_options(verb: str) -> list[str]:
    parser = _parser({verb: _module(verb)}, ["--help-all"]).verb
    assert parser is not None
    return [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings
        and (action.type in (int, float) or action.option_strings[-1] in TEXTS.get(verb, ()))
    ]


def is_setting(verb: str, option: str) -> bool:
    """Return whether the option is a setting of `train`; settings have a test of their own."""
    return verb == "plan" and option.removeprefix("--").replace("-", "_") in options()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    np.savetxt(made / "e.txt", rng.integers(0, 30, (90, 2)), fmt="%d")
    np.save(made / "y.npy", rng.integers(0, 2, 30))
    source = [str(made / name) for name in ("e.txt", "g.h5")]
    more = ["--labels", str(made / "y.npy"), "--num-nodes", "30", "--split-ratio", "8,1,1"]
    assert main(["convert", *source, *more]) == 0
    return made


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        (verb, option)
        for verb in BASE
        for option in numeric_options(verb)
        if not is_setting(verb, option)
    ],
)
def test_hostile_numbers_for_options_of_verbs(folder, monkeypatch, capsys, verb, option):
    monkeypatch.chdir(folder)
    for value in HOSTILE:
        status = main([verb, *BASE[verb], f"{option}={value}"])
        error = capsys.readouterr().err
        shown = (option, value[:20], error[-300:])
        assert status in (0, 2) and "Traceback" not in error, shown
        assert error.count("hpcgnn: error: ") == (status == 2) and len(error) < 2000, shown
        assert status == 2 or value not in NONSENSE, shown


@pytest.mark.parametrize(
    "name", [n for n, p in options().items() if type(p.setting.default) in (int, float)]
)
def test_hostile_numbers_for_settings(name):
    parser = argparse.ArgumentParser(exit_on_error=False)
    train.add_arguments(parser)
    for value in HOSTILE:
        try:
            args = parser.parse_args(["g.h5", f"--{name.replace('_', '-')}={value}"])
            found = resolve(args, None).flat()[name]
        except (InputError, argparse.ArgumentError) as error:
            assert len(str(error)) < 6000 and "\n" not in str(error)
        else:
            assert math.isfinite(found) and found == float(value)


@pytest.mark.parametrize("what", ["kernels", "ring", "epoch", "scale", "accuracy"])
def test_hostile_numbers_for_options_of_bench(what, capsys):
    parser = argparse.ArgumentParser()
    bench.WHATS[what][1](parser)
    for action in parser._actions:
        for value in {int: ("-1", str(10**30)), float: ("nan", "inf")}.get(action.type, ()):
            assert main(["bench", what, f"{action.option_strings[-1]}={value}"]) == 2
            assert capsys.readouterr().err.count("hpcgnn: error: ") == 1, (action.dest, value)


def test_all_verbs_with_numeric_options_are_tested():
    others = {"train", "bench"}  # see above; the other verbs have no numeric options
    found = {verb for verb in VERBS if numeric_options(verb)}
    assert found - others == set(BASE)
