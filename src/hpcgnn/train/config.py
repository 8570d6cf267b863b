"""Every setting of a training run: defaults, then a file, then the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from hpcgnn.errors import InputError, printable
from hpcgnn.models.settings import OWN, ModelSettings
from hpcgnn.sar.settings import StreamingSettings
from hpcgnn.settings import (
    Section,
    Setting,
    Value,
    declared,
    flag,
    named_once,
    nearest,
    parse_toml,
    read_text,
)
from hpcgnn.tasks.settings import TaskSettings
from hpcgnn.train.settings import (
    CheckpointSettings,
    DeviceSettings,
    OptimiserSettings,
    TrainingSettings,
)

_MOST_RATE = 1e30  # largest learning rate


@dataclass(frozen=True)
class Config:
    """A resolved configuration; stored as JSON in every output.

    Files and options name a setting without its section (`checkpoint_every`, see `options`), as do
    `Config.of` and `flat`; a TOML file may use sections: `[checkpoints]`, then `every = 5`.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)

    def __post_init__(self) -> None:
        optimiser, epochs = self.optimiser, self.training.epochs
        if optimiser.schedule == "step" and not _rates_are_finite(optimiser, epochs):
            raise InputError(
                f"--gamma is too large for {epochs} epochs with --step-size {optimiser.step_size}",
                value=optimiser.gamma,
            )

    @staticmethod
    def of(**values: Any) -> Config:
        """Return the `Config` of settings without sections: `Config.of(model="gcn", hidden=64)`.

        Raises:
            InputError: a value has a wrong type or is out of range, or values are incompatible.
            TypeError: no setting has this name.
        """
        places = options()
        found: dict[str, dict[str, Any]] = {name: {} for name in _sections()}
        for name, value in values.items():
            if name not in places:
                raise TypeError(f"no setting is called {name}")
            found[places[name].section][places[name].name] = value
        sections: dict[str, Any] = {name: kind(**found[name]) for name, kind in _sections().items()}
        return Config(**sections)

    def flat(self) -> dict[str, Value]:
        """Return all settings without their sections, named as in options and files."""
        return {
            option: getattr(getattr(self, place.section), place.name)
            for option, place in options().items()
        }

    def changed(self, **values: Any) -> Config:
        """Return the same configuration with other values of some settings, named as in `of`."""
        return Config.of(**self.flat() | values)

    def to_json(self) -> str:
        return json.dumps(self.flat(), sort_keys=True)

    @staticmethod
    def from_json(text: str, file: str | Path) -> Config:
        """Return a stored configuration; raise InputError for unknown names."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("holds no readable configuration", file=file) from error
        return from_mapping(values, file)


@dataclass(frozen=True)
class SettingPlace:
    """The place of a setting: `config.section.name`."""

    section: str
    name: str
    setting: Setting


def _sections() -> dict[str, type[Section]]:
    types = get_type_hints(Config)
    return {entry.name: types[entry.name] for entry in dataclasses.fields(Config)}


def options() -> dict[str, SettingPlace]:
    """Return every setting by its name without a section, in the order of sections."""
    return {
        setting.option or name: SettingPlace(section, name, setting)
        for section, kind in _sections().items()
        for name, setting in declared(kind).items()
    }


def _rates_are_finite(optimiser: OptimiserSettings, epochs: int) -> bool:
    steps = max(epochs - 1, 0) // optimiser.step_size
    try:
        return optimiser.lr * optimiser.gamma**steps <= _MOST_RATE
    except OverflowError:
        return False


def from_mapping(values: Any, file: str | Path) -> Config:
    """Return the `Config` of a dictionary, flat or in sections; errors about it name `file`."""
    if not isinstance(values, dict):
        raise InputError("must be a table of settings", file=file)
    try:
        return Config.of(**_flattened(values))
    except InputError as error:
        raise InputError(str(error), file=file) from None


def _flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    known, found = options(), {}
    for given, value in values.items():
        name = str(given).replace("-", "_")
        if isinstance(value, dict) and name in _sections():
            entries = [(_option(name, str(key)), entry) for key, entry in value.items()]
        elif name in known:
            entries = [(name, value)]
        else:
            raise _unknown(name)
        for option, entry in entries:
            if option in found:
                raise InputError(f"names a setting twice: {option}")
            found[option] = entry
    return found


def _option(section: str, name: str) -> str:
    """Return the flat name of the setting that a section calls `name`, or that is its flat name."""
    name = name.replace("-", "_")
    for option, place in options().items():
        if place.section == section and name in (place.name, option):
            return option
    raise _unknown(f"{section}.{name}")


def _unknown(name: str) -> InputError:
    """Return the error about `name` or `section.name`, with the right section or nearest name."""
    section, _, last = name.rpartition(".")
    places = {option: place for option, place in options().items() if section}
    if last in places:
        meant = f": {last} is of [{places[last].section}]"
    else:
        inside = [name for name, place in places.items() if place.section == section]
        meant = nearest(last, inside or dict.fromkeys((*_sections(), *options())))
    return InputError(f"has an unknown setting, {name}{meant or '; --help-all lists them'}")


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one option per setting, in a group per section; only given ones are set on the namespace.

    Also adds `--set KEY=VALUE`, for any setting that a TOML file may hold.
    """
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="set anything that a TOML file can, such as optimiser.lr=0.1; overrides the file, "
        "overridden by options",
    )
    groups = {name: parser.add_argument_group(f"{name} settings") for name in _sections()}
    for option, place in options().items():
        setting, group = place.setting, groups[place.section]
        shown = setting.help
        if setting.shown_others:
            shown += f"; names are {', '.join(setting.choices)}"
        if setting.default != "":
            shown += f" (default: {setting.default})"
        common: dict[str, Any] = {"dest": option, "default": argparse.SUPPRESS, "help": shown}
        if isinstance(setting.default, bool):
            group.add_argument(flag(option), action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(
                flag(option),
                type=type(setting.default),
                choices=None if setting.shown_others else setting.choices or None,
                metavar=_metavar(setting),
                **common,
            )


def _metavar(setting: Setting) -> str | None:
    if setting.shown_others:
        return f"NAME|{setting.shown_others}"
    return None if setting.choices else setting.metavar or _METAVARS[type(setting.default)]


def _set(changes: list[str]) -> dict[str, Any]:
    """Return settings without their sections from the texts of `--set`."""
    found: dict[str, Any] = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError("--set takes KEY=VALUE", value=text)
        try:
            parsed = parse_toml(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            parsed = value  # a string, which needs no quotes here
        section, dot, name = key.strip().partition(".")
        given = {section: {name: parsed}} if dot else {section: parsed}
        try:
            found |= _flattened(given)
        except InputError as error:
            raise InputError(f"--set {text[:80]}: {error}") from None
    return found


def resolve(
    args: argparse.Namespace, config_file: str | None, former: Config | None = None
) -> Config:
    """Return the defaults, or a run's `former` settings, overridden by file, `--set` and options.

    Raises:
        InputError: the file is missing or not TOML (JSON, if its name ends so), a setting is
            unknown or out of range, or the file of a user's model is named only by `former`.
    """
    given: dict[str, Any] = {} if config_file is None else _read(Path(config_file))
    given |= _set(getattr(args, "changes", []))
    given |= {option: getattr(args, option) for option in options() if hasattr(args, option)}
    if former is None:
        return Config.of(**given)
    model = former.model
    if model.own and model.kind != OWN and "model" not in given:
        raise InputError(
            "the run used a model of your own, and code that a run directory names isn't run "
            f"unless you ask for it: add --model {printable(model.kind)[:200]}"
        )
    return Config.of(**former.flat() | given)


def former_settings(run_dir: Path) -> Config | None:
    """Return the settings that a run was started with; None if its directory has no config.json.

    Raises:
        InputError: config.json can't be read, or isn't that of a run.
    """
    path = run_dir / "config.json"
    return Config.of(**_read(path)) if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    """Return the settings in a file, without their sections."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    text = read_text(path)
    try:
        if kind == "JSON":
            values = json.loads(text, object_pairs_hook=named_once)
        else:
            values = parse_toml(text)
    except (ValueError, RecursionError) as error:  # syntax, too many digits or nesting
        raise InputError(f"is not {kind}: {error}", file=path) from error
    from_mapping(values, path)
    return _flattened(values)
