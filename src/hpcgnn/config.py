"""Every setting of a training run: defaults, then a TOML file, then the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError

MOST_RATE = 1e30  # of learning
MOST_BYTES = 1 << 60
HIGHEST = (1 << 31) - 1  # of seeds, as METIS takes them
DEFINING, TOLD, FREE = "defining", "told", "free"


def _setting(
    resume: str,
    default: Any,
    help_text: str,
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    limits = {"choices": choices, "least": least, "most": most}
    return field(default=default, metadata={"help": help_text, "resume": resume, **limits})


_defining = partial(_setting, DEFINING)  # with another value it is another run
_told = partial(_setting, TOLD)  # may change on resume, which is said: the numbers go another way
_free = partial(_setting, FREE)  # may change on resume


@dataclass(frozen=True)
class Config:
    """A resolved configuration; stored as JSON in every output.

    Each setting is declared as defining a run, or free to change when it is resumed.
    """

    model: str = _defining(
        "sage",
        "layer type",
        ("gcn", "sage", "gat", "gatv2", "gin", "rgcn", "appnp", "sgc", "dagnn"),
    )
    layers: int = _defining(3, "message-passing layers", least=1, most=1000)
    hidden: int = _defining(256, "hidden width (over all heads)", least=1, most=1 << 16)
    heads: int = _defining(4, "attention heads", least=1, most=1024)
    output_heads: int = _defining(
        0, "attention heads of a last convolution, averaged; 0: as --heads", least=0, most=1024
    )
    dropout: float = _defining(0.5, "dropout probability between layers")
    input_dropout: float = _defining(0.0, "dropout probability on the input features")
    attention_dropout: float = _defining(0.0, "dropout probability on attention weights")
    norm: str = _defining(
        "none", "normalisation between layers", ("none", "layer", "batch", "graph")
    )
    activation: str = _defining("relu", "between layers", ("relu", "elu"))
    residual: bool = _defining(False, "add a linear map of each layer's input to its output")
    head: str = _defining("conv", "last layer: a convolution or a linear map", ("conv", "linear"))
    jumping: str = _defining(
        "none", "jumping knowledge before a linear head", ("none", "cat", "max")
    )
    bases: int = _defining(0, "R-GCN: number of bases, 0 for none", least=0, most=1 << 16)
    embedding: int = _defining(
        0, "width of learned node embeddings where there are no features", least=0, most=1 << 16
    )
    ignore: str = _defining(
        "none",
        "what the graph holds and the model shall not read: weights, edge-features, relations, "
        "types, features, with commas between",
    )
    power: int = _defining(10, "APPNP, SGC, DAGNN: propagation steps", least=1, most=10_000)
    teleport: float = _defining(0.1, "APPNP: teleport probability", least=0, most=1)
    labels_as_input: float = _defining(0.0, "share of training labels given as input each epoch")
    adversarial_steps: int = _defining(
        0, "FLAG: ascent steps on the input features, 0 for none", least=0, most=1000
    )
    adversarial_size: float = _defining(1e-3, "FLAG: step size", least=0, most=1e6)
    optimizer: str = _defining("adam", "optimizer", ("adam", "adamw", "sgd"))
    lr: float = _told(1e-2, "learning rate", least=0, most=1e6)
    weight_decay: float = _told(0.0, "weight decay", least=0, most=1e6)
    schedule: str = _told("constant", "learning rate schedule", ("constant", "cosine", "step"))
    step_size: int = _told(100, "epochs per step of the step schedule", least=1, most=10**9)
    gamma: float = _told(0.5, "factor of the step schedule", least=0, most=1000)
    epochs: int = _free(100, "epochs", least=0, most=10**9)
    patience: int = _free(
        0,
        "stop after so many epochs without better validation; 0: never",
        least=0,
        most=10**9,
    )
    eval_every: int = _free(1, "epochs between evaluations", least=1, most=10**9)
    metric: str = _defining("auto", "reported metric", ("auto", "accuracy", "auc", "f1"))
    split: int = _defining(0, "which split of the graph file", least=0, most=HIGHEST)
    seed: int = _defining(0, "seed of everything random", least=0, most=HIGHEST)
    mode: str = _free(
        "sar", "remote features: freed and rebuilt, kept, or all at once", ("sar", "sa", "oneshot")
    )
    method: str = _free(
        "parmetis",
        "how a graph file is partitioned",
        ("parmetis", "metis", "streaming", "random", "block"),
    )
    halo_buffer: str = _free("256MiB", "memory for remote rows")
    prefetch: int = _free(2, "messages posted ahead", least=1, most=1 << 16)
    device: str = _free("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = _told(
        "fp32",
        "dense products in float32, TF32 or bfloat16; the last rounds messages too",
        ("fp32", "tf32", "bf16"),
    )
    transport: str = _free("auto", "how messages leave a GPU", ("auto", "staged", "cuda-aware"))
    features_on: str = _free(
        "device", "where dense features lie; on the host they stream through the GPU",
        ("device", "host"),
    )  # fmt: skip
    fewest_rows: bool = _free(True, "send sums as source rows or partial sums, whichever is less")
    narrow_first: bool = _free(True, "multiply by weights before sums that are then narrower")
    cache_first: bool = _free(True, "compute sums of the input features once")
    prune: bool = _free(True, "skip nodes that reach no labelled node in the remaining layers")
    checkpoint_every: int = _free(
        10, "epochs between checkpoints; 0: only at the end", least=0, most=10**9
    )
    keep: int = _free(2, "checkpoints kept beside the best", least=1, most=10**9)
    fail_on_checkpoint: bool = _free(False, "end the run when a checkpoint can't be written")
    time_margin: float = _free(
        60.0, "seconds before the time limit to stop, beside two epochs", least=0, most=1e9
    )

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            _check(entry, getattr(self, entry.name))
        for name in ("dropout", "input_dropout", "attention_dropout", "labels_as_input"):
            if not 0 <= getattr(self, name) < 1:
                value = _shown(getattr(self, name))
                raise InputError(f"{flag(name)} must be in [0, 1)", value=value)
        if self.model in ("gat", "gatv2") and self.hidden % self.heads:
            raise InputError(
                f"--hidden must be a multiple of --heads {self.heads}", value=self.hidden
            )
        parse_size(self.halo_buffer)
        unknown = set(self.ignore.split(",")) - set(_IGNORABLE)
        if unknown and self.ignore != "none":
            raise InputError(
                f"--ignore takes {', '.join(_IGNORABLE)}, with commas between", value=self.ignore
            )
        if self.schedule == "step" and not self._rates_are_finite():
            raise InputError(
                f"--gamma is too large for {self.epochs} epochs with --step-size {self.step_size}",
                value=self.gamma,
            )

    def _rates_are_finite(self) -> bool:
        steps = max(self.epochs - 1, 0) // self.step_size
        try:
            return self.lr * self.gamma**steps <= MOST_RATE
        except OverflowError:
            return False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str, file: str | Path) -> Config:
        """Read a stored configuration; unknown names are refused."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("holds no readable configuration", file=file) from error
        return from_mapping(values, file)


_IGNORABLE = ("weights", "edge-features", "relations", "types", "features")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def flag(name: str) -> str:
    """The option of a setting: `--weight-decay`."""
    return "--" + name.replace("_", "-")


def _check(entry: dataclasses.Field[Any], value: Any) -> None:
    kind = type(entry.default)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        wrong = False
    wanted = _KINDS[kind]
    if not wrong and isinstance(value, float) and not math.isfinite(value):
        wrong, wanted = True, "a finite number"
    if wrong:
        shown = _shown(value) if isinstance(value, int) else value
        raise InputError(f"{flag(entry.name)} must be {wanted}", value=shown)
    if kind in (int, float):
        check_range(flag(entry.name), value, entry.metadata["least"], entry.metadata["most"])
    choices = entry.metadata["choices"]
    if choices and value not in choices:
        raise InputError(f"{flag(entry.name)} must be one of {', '.join(choices)}", value=value)


def check_range(
    name: str, value: float, least: float | None = None, most: float | None = None
) -> None:
    """Refuse a number outside `least .. most`.

    Raises:
        InputError: `name` with the limit and the value.
    """
    if least is not None and value < least:
        raise InputError(f"{name} must be at least {int(least):,}", value=_shown(value))
    if most is not None and value > most:
        raise InputError(f"{name} must be at most {int(most):,}", value=_shown(value))


def _shown(value: float) -> float | None:
    """The value as errors show it: Python prints no integer of thousands of digits."""
    return None if isinstance(value, int) and value.bit_length() > 128 else value


def parse_size(text: str) -> int:
    """Bytes of `64MiB`, `1.5GB`, `4096`; at most 1 EiB."""
    powers = {"k": 1, "m": 2, "g": 3}
    units = {"": 1, "b": 1}
    for letter, power in powers.items():
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    number = text.strip().rstrip("bBkKmMgGiI")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise InputError("not a size; write it like 256MiB", value=text) from None
    if size <= 0:
        raise InputError("a size must be above 0", value=text)
    if size > MOST_BYTES:
        raise InputError("a size must be at most 1 EiB", value=text)
    return size


def from_mapping(values: Any, file: str | Path) -> Config:
    """A `Config` from a dictionary; unknown names are refused with the file's name."""
    if not isinstance(values, dict):
        raise InputError("must be a table of settings", file=file)
    known = {entry.name for entry in dataclasses.fields(Config)}
    named = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in named:
        if name not in known:
            raise InputError(
                f"has an unknown setting; `hpcgnn train --help` lists them: {name}", file=file
            )
    try:
        return Config(**named)
    except InputError as error:
        raise InputError(str(error), file=file) from None


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option per setting; only those given on the command line are set on the namespace."""
    group = parser.add_argument_group("settings")
    for entry in dataclasses.fields(Config):
        shown = f"{entry.metadata['help']} (default: {entry.default})"
        common: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS, "help": shown}
        if isinstance(entry.default, bool):
            group.add_argument(flag(entry.name), action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(
                flag(entry.name),
                type=type(entry.default),
                choices=entry.metadata["choices"] or None,
                metavar=None if entry.metadata["choices"] else "X",
                **common,
            )


def resolve(args: argparse.Namespace, config_file: str | None) -> Config:
    """Defaults, overridden by the TOML file, overridden by options given.

    Raises:
        InputError: the file is missing, is no TOML, or a setting is unknown or out of range.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        try:
            values = tomllib.loads(Path(config_file).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=config_file) from error
        except (ValueError, RecursionError) as error:  # of text, TOML, endless digits or nesting
            raise InputError(f"is no TOML: {error}", file=config_file) from error
        values = dataclasses.asdict(from_mapping(values, config_file))
    for entry in dataclasses.fields(Config):
        if hasattr(args, entry.name):
            values[entry.name] = getattr(args, entry.name)
    return Config(**values)
