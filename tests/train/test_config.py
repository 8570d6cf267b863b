"""Settings from defaults, TOML and options; wrong ones are refused in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from hpcgnn.errors import InputError
from hpcgnn.settings import parse_size
from hpcgnn.train.config import Config, add_options, options, resolve


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(options)


def refused(config_file=None, options=(), **changes) -> str:
    with pytest.raises(InputError) as caught:
        Config.of(**changes) if changes else resolve(parse(*options), config_file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_override_toml_which_overrides_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "gcn"\nhidden = 32\nlr = 1\nweight-decay = 0.5\nresidual = true\n')
    config = resolve(parse("--hidden", "64", "--no-residual", "--norm", "batch"), str(file))
    assert (config.model.kind, config.model.hidden, config.optimiser.lr) == ("gcn", 64, 1)
    assert config.optimiser.weight_decay == 0.5
    assert (config.model.residual, config.model.norm) == (False, "batch")
    changed = {"model", "hidden", "lr", "weight_decay", "norm"}
    default, named = Config().flat(), config.flat()
    assert {name for name in named if named[name] != default[name]} == changed
    assert Config.from_json(config.to_json(), "x") == config


def test_a_file_changes_only_the_settings_it_names_of_an_earlier_run(tmp_path):
    """A run's config.json is such a file too, which names all settings."""
    former = Config.of(model="gcn", hidden=32, lr=0.5)
    toml, whole = tmp_path / "some.toml", tmp_path / "config.json"
    toml.write_text("hidden = 16")
    whole.write_text(former.to_json())
    found = resolve(parse("--layers", "2"), str(toml), former)
    assert found == former.changed(hidden=16, layers=2)
    assert resolve(parse("--hidden", "16"), str(whole), Config()) == former.changed(hidden=16)
    whole.write_text("{")
    assert "this is not a settings file" in refused("/dev/zero")
    assert "is not JSON" in refused(str(whole))
    whole.write_text('{"model": {"hidden": 16, "hidden": 32}}')
    assert "'hidden' occurs twice" in refused(str(whole))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hiden = 3", ["run.toml", "unknown setting, hiden: did you mean hidden?"]),
        ("[model]\nlr = 0.1", ["run.toml", "unknown setting, model.lr: lr is of [optimiser]"]),
        ("[modell]\nhidden = 3", ["run.toml", "unknown setting, modell: did you mean model"]),
        ("[hidden]\nsize = 3", ["run.toml", "--hidden must be an integer"]),
        ("hidden = 3\n[model]\nhidden = 3", ["run.toml", "names a setting twice: hidden"]),
        ("[checkpoints]\nevery = -1", ["run.toml", "--checkpoint-every must be at least 0"]),
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
        ("hidden = ", ["run.toml", "is not TOML"]),
        (".".join(["a"] * 100_000) + " = 1", ["run.toml", "more than 32 words"]),  # else minutes
    ],
)
def test_wrong_toml_is_refused(tmp_path, text, words):
    file = tmp_path / "run.toml"
    file.write_text(text)
    message = refused(str(file))
    for word in words:
        assert word in message


def test_toml_sections_match_the_configuration(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'epochs = 7\n[model]\nkind = "gat"\nhidden = 64\n[optimiser]\nweight-decay = 0.5\n'
        '[checkpoints]\nevery = 5\n[device]\ndevice = "cpu"\n'
    )
    config = resolve(parse(), str(file))
    assert config == Config.of(
        model="gat", hidden=64, epochs=7, weight_decay=0.5, checkpoint_every=5, device="cpu"
    )
    by_section = {name: dataclasses.asdict(getattr(config, name)) for name in vars(config)}
    assert Config.from_json(json.dumps(by_section), "x") == config


def test_help_shows_the_options_of_a_section_together():
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = parser.format_help()
    model, rest = text[text.index("model settings:") :].split("optimiser settings:")
    assert "--model" in model and "--hidden" in model and "--lr" not in model and "--lr" in rest


def test_unreadable_files_are_refused(tmp_path):
    assert "can't be read" in refused(str(tmp_path / "missing.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in refused(str(tmp_path / "binary.toml"))


def test_incompatible_settings_are_refused():
    assert "multiple of --heads 4" in refused(model="gat", hidden=30)
    assert Config.of(model="gcn", hidden=30).model.hidden == 30


@pytest.mark.parametrize("name", options())
def test_no_setting_takes_a_wrong_type(name):
    assert "--" + name.replace("_", "-") in refused(**{name: [1]})


NUMBERS = [name for name, place in options().items() if type(place.setting.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_limits(name):
    """Also for integers that Python refuses to print."""
    for value in (1 << 70, -(1 << 70), 10**5000, -(10**5000)):
        message = refused(**{name: value})
        assert "--" + name.replace("_", "-") in message and len(message) < 150
    if isinstance(options()[name].setting.default, float):
        assert "--" in refused(**{name: 1e300})


def test_rates_that_overflow_are_refused():
    for gamma, epochs in ((1000, 10_000), (2.0, 10**9)):
        words = refused(schedule="step", step_size=1, gamma=gamma, epochs=epochs)
        assert f"--gamma is too large for {epochs} epochs" in words
    assert Config.of(schedule="step", step_size=1, gamma=0.5, epochs=10**9).optimiser.gamma == 0.5


def test_huge_numbers_and_deep_nesting_in_files_are_refused(tmp_path):
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


def test_sizes_are_parsed():
    assert [parse_size(t) for t in ("4096", "64MiB", "1.5GB", "2k", "1 GiB", "7b")] == [
        4096,
        64 << 20,
        1_500_000_000,
        2048,
        1 << 30,
        7,
    ]
    for wrong in ("", "MiB", "-1", "0", "nan", "inf", "1e400", "3 TB", "1.2.3", "2e9GiB"):
        with pytest.raises(InputError):
            parse_size(wrong)
