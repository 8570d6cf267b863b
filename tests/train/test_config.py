"""Settings from defaults, TOML and options; wrong ones are refused in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from hpcgnn.config import Config, add_options, parse_size, resolve
from hpcgnn.errors import InputError


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(options)


def refused(config_file=None, options=(), **changes) -> str:
    with pytest.raises(InputError) as caught:
        Config(**changes) if changes else resolve(parse(*options), config_file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_override_toml_which_overrides_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "gcn"\nhidden = 32\nlr = 1\nweight-decay = 0.5\nresidual = true\n')
    config = resolve(parse("--hidden", "64", "--no-residual", "--norm", "batch"), str(file))
    assert (config.model, config.hidden, config.lr) == ("gcn", 64, 1)
    assert (config.weight_decay, config.residual, config.norm) == (0.5, False, "batch")
    changed = {"model", "hidden", "lr", "weight_decay", "norm"}
    default, named = dataclasses.asdict(Config()), dataclasses.asdict(config)
    assert {name for name in named if named[name] != default[name]} == changed
    assert Config.from_json(config.to_json(), "x") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hiden = 3", ["run.toml", "unknown setting", "hiden"]),
        ("[model]\nhidden = 3", ["run.toml", "--model must be text"]),
        ('hidden = "3"', ["run.toml", "--hidden must be an integer", "'3'"]),
        ("hidden = 2.5", ["--hidden must be an integer", "2.5"]),
        ("hidden = true", ["--hidden must be an integer", "True"]),
        ("residual = 1", ["--residual must be true or false"]),
        ("lr = nan", ["--lr must be a finite number", "nan"]),
        ("lr = -inf", ["--lr must be a finite number"]),
        ('lr = "fast"', ["--lr must be a number", "'fast'"]),
        ("dropout = 1.0", ["--dropout must be in [0, 1)", "1.0"]),
        ("labels-as-input = -0.1", ["--labels-as-input must be in [0, 1)"]),
        ("layers = 0", ["--layers must be at least 1", "0"]),
        ('model = "cnn"', ["--model must be one of", "gcn", "cnn"]),
        ('halo_buffer = "1 elephant"', ["not a size", "256MiB", "elephant"]),
        ("hidden = ", ["run.toml", "is no TOML"]),
    ],
)
def test_wrong_toml(tmp_path, text, words):
    file = tmp_path / "run.toml"
    file.write_text(text)
    message = refused(str(file))
    for word in words:
        assert word in message


def test_unreadable_files(tmp_path):
    assert "can't be read" in refused(str(tmp_path / "missing.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "is no TOML" in refused(str(tmp_path / "binary.toml"))


def test_settings_that_do_not_fit_together():
    assert "multiple of --heads 4" in refused(model="gat", hidden=30)
    assert Config(model="gcn", hidden=30).hidden == 30


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(Config)])
def test_no_setting_takes_a_wrong_type(name):
    assert "--" + name.replace("_", "-") in refused(**{name: [1]})


NUMBERS = [entry for entry in dataclasses.fields(Config) if type(entry.default) in (int, float)]


@pytest.mark.parametrize("entry", NUMBERS, ids=lambda entry: entry.name)
def test_every_number_has_limits(entry):
    """Also against integers that Python won't print."""
    for value in (1 << 70, -(1 << 70), 10**5000, -(10**5000)):
        message = refused(**{entry.name: value})
        assert "--" + entry.name.replace("_", "-") in message and len(message) < 150
    if isinstance(entry.default, float):
        assert "--" in refused(**{entry.name: 1e300})


def test_rates_that_overflow_are_refused():
    for gamma, epochs in ((1000, 10_000), (2.0, 10**9)):
        words = refused(schedule="step", step_size=1, gamma=gamma, epochs=epochs)
        assert f"--gamma is too large for {epochs} epochs" in words
    assert Config(schedule="step", step_size=1, gamma=0.5, epochs=10**9).gamma == 0.5


def test_endless_numbers_and_nesting_in_files(tmp_path):
    file = tmp_path / "run.toml"
    for text in ("hidden = " + "9" * 5000, "hidden = " + "[" * 100_000, "hidden = 0x" + "f" * 9000):
        file.write_text(text)
        assert "run.toml" in refused(str(file))
    with pytest.raises(InputError, match="no readable configuration"):
        Config.from_json('{"hidden": ' + "[" * 100_000, "file.h5")


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"hidden": None}), '{"nope": 1}'])
def test_stored_configurations_are_checked(text):
    with pytest.raises(InputError, match=r"file\.h5"):
        Config.from_json(text, "file.h5")


def test_sizes():
    assert [parse_size(t) for t in ("4096", "64MiB", "1.5GB", "2k", "1 GiB", "7b")] == [
        4096, 64 << 20, 1_500_000_000, 2048, 1 << 30, 7,
    ]  # fmt: skip
    for wrong in ("", "MiB", "-1", "0", "nan", "inf", "1e400", "3 TB", "1.2.3", "2e9GiB"):
        with pytest.raises(InputError):
            parse_size(wrong)
