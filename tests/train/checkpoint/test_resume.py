"""Settings that may change when a run is resumed, and resuming a run that had ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcgnn.errors import InputError
from hpcgnn.settings import DEFINING, FREE, TOLD
from hpcgnn.train.checkpoint.resume import check_resumed
from hpcgnn.train.config import Config, options

SETTINGS = options()
PATH = Path("run/checkpoints/epoch-000010.h5")


def other(name: str) -> Config:
    """Return the defaults except for this setting."""
    setting = SETTINGS[name].setting
    value = {bool: lambda v: not v, int: lambda v: v + 4, float: lambda v: v + 0.25}.get(
        type(setting.default), lambda v: "1GiB"
    )(setting.default)
    values = {
        "ignore": "weights",
        "class_weights": "balanced",
        "positive_weights": "balanced",
        "param_groups": "*.bias:weight_decay=0",
    }
    value = values.get(name, value)
    if name == "model_args":  # which is only for models of the user
        return Config.of(model="net.py:Net", model_args="width=4")
    choices = [choice for choice in setting.choices if choice != setting.default]
    return Config.of(**{name: choices[0] if choices else value})


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_refused_reported_or_free_when_changed(name):
    kind, option = SETTINGS[name].setting.resume, "--" + name.replace("_", "-")
    assert kind in (DEFINING, TOLD, FREE)
    if kind == DEFINING:
        with pytest.raises(InputError, match=f"{PATH}: was trained with --.*choose another") as e:
            check_resumed(Config(), other(name), PATH, 10)
        assert str(e.value).count(option.removeprefix("--")) == 2
    else:
        told = check_resumed(Config(), other(name), PATH, 10)
        # Size and factor of steps do not matter for a constant learning rate.
        silent = kind == FREE or name in ("step_size", "gamma")
        assert told.count(option) == (0 if silent else 2)


def test_settings_of_model_and_data_define_a_run():
    defining = {name for name, place in SETTINGS.items() if place.setting.resume == DEFINING}
    assert defining >= {"model", "hidden", "activation", "power", "teleport", "dropout"}
    assert defining >= {"split", "seed", "optimizer", "labels_as_input", "metric"}
    assert defining >= {"ranked_against", "hits_at"}  # which determines how epochs are compared


def test_old_and_new_values_of_changed_settings_are_named():
    now = Config.of(split=1, residual=True, lr=0.5)
    words = r"with --no-residual --split 0, not --residual --split 1: use the former values"
    with pytest.raises(InputError, match=words):
        check_resumed(Config(), now, PATH, 10)


def test_a_changed_schedule_is_reported_with_both_learning_rates():
    short, longer = (Config.of(schedule="cosine", epochs=n) for n in (10, 20))
    told = check_resumed(short, longer, PATH, 9)
    assert told == (
        "continues with --epochs 20 instead of --epochs 10: the learning rate was 0.0009549 in "
        "epoch 9, and is 0.005782 in epoch 10"
    )
    assert check_resumed(Config.of(epochs=10), Config.of(epochs=20), PATH, 10) == ""
    steps = Config.of(schedule="step", step_size=5), Config.of(schedule="step", step_size=6)
    assert "--step-size 6 instead of --step-size 5: the learning" in check_resumed(*steps, PATH, 5)
    # Steps are counted from the first epoch, so more epochs change no learning rate.
    steps = tuple(Config.of(schedule="step", epochs=n) for n in (10, 20))
    assert check_resumed(*steps, PATH, 10) == ""


def test_settings_of_the_monitored_loss_define_a_run():
    for monitor in ("loss", "valid_loss"):
        former = Config.of(monitor=monitor)
        with pytest.raises(InputError, match=r"with --label-smoothing 0\.0, not --label-smoothing"):
            check_resumed(former, former.changed(label_smoothing=0.1), PATH, 10)
        assert "--lr 0.5 instead of" in check_resumed(former, former.changed(lr=0.5), PATH, 10)
    told = check_resumed(Config(), Config.of(label_smoothing=0.1), PATH, 10)
    assert "--label-smoothing 0.1 instead of --label-smoothing 0.0" in told
