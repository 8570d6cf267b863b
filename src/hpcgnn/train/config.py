"""Every setting of a training run: defaults, then a TOML file, then the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class Config:
    """A resolved configuration; stored as JSON in every output."""

    model: str = _option(
        "sage",
        "layer type",
        ("gcn", "sage", "gat", "gatv2", "gin", "rgcn", "appnp", "sgc", "dagnn"),
    )
    layers: int = _option(3, "message-passing layers")
    hidden: int = _option(256, "hidden width (over all heads)")
    heads: int = _option(4, "attention heads")
    output_heads: int = _option(0, "attention heads of a last convolution, averaged; 0: as --heads")
    dropout: float = _option(0.5, "dropout probability between layers")
    input_dropout: float = _option(0.0, "dropout probability on the input features")
    attention_dropout: float = _option(0.0, "dropout probability on attention weights")
    norm: str = _option("none", "normalisation between layers", ("none", "layer", "batch", "graph"))
    activation: str = _option("relu", "between layers", ("relu", "elu"))
    residual: bool = _option(False, "add a linear map of each layer's input to its output")
    head: str = _option("conv", "last layer: a convolution or a linear map", ("conv", "linear"))
    jumping: str = _option("none", "jumping knowledge before a linear head", ("none", "cat", "max"))
    bases: int = _option(0, "R-GCN: number of bases, 0 for none")
    embedding: int = _option(0, "width of learned node embeddings where there are no features")
    ignore: str = _option(
        "none",
        "what the graph holds and the model shall not read: weights, edge-features, relations, "
        "types, features, with commas between",
    )
    power: int = _option(10, "APPNP, SGC, DAGNN: propagation steps")
    teleport: float = _option(0.1, "APPNP: teleport probability")
    labels_as_input: float = _option(0.0, "share of training labels given as input each epoch")
    adversarial_steps: int = _option(0, "FLAG: ascent steps on the input features, 0 for none")
    adversarial_size: float = _option(1e-3, "FLAG: step size")
    optimizer: str = _option("adam", "optimizer", ("adam", "adamw", "sgd"))
    lr: float = _option(1e-2, "learning rate")
    weight_decay: float = _option(0.0, "weight decay")
    schedule: str = _option("constant", "learning rate schedule", ("constant", "cosine", "step"))
    step_size: int = _option(100, "epochs per step of the step schedule")
    gamma: float = _option(0.5, "factor of the step schedule")
    epochs: int = _option(100, "epochs")
    patience: int = _option(0, "stop after so many epochs without better validation; 0: never")
    eval_every: int = _option(1, "epochs between evaluations")
    metric: str = _option("auto", "reported metric", ("auto", "accuracy", "auc", "f1"))
    split: int = _option(0, "which split of the graph file")
    seed: int = _option(0, "seed of everything random")
    mode: str = _option(
        "sar", "remote features: freed and rebuilt, kept, or all at once", ("sar", "sa", "oneshot")
    )
    method: str = _option(
        "parmetis",
        "how a graph file is partitioned",
        ("parmetis", "metis", "streaming", "random", "block"),
    )
    halo_buffer: str = _option("256MiB", "memory for remote rows")
    prefetch: int = _option(2, "messages posted ahead")
    device: str = _option("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = _option(
        "fp32",
        "dense products in float32, TF32 or bfloat16; the last rounds messages too",
        ("fp32", "tf32", "bf16"),
    )
    transport: str = _option("auto", "how messages leave a GPU", ("auto", "staged", "cuda-aware"))
    features_on: str = _option(
        "device", "where dense features lie; on the host they stream through the GPU",
        ("device", "host"),
    )  # fmt: skip
    fewest_rows: bool = _option(True, "send sums as source rows or partial sums, whichever is less")
    narrow_first: bool = _option(True, "multiply by weights before sums that are then narrower")
    cache_first: bool = _option(True, "compute sums of the input features once")
    prune: bool = _option(True, "skip nodes that reach no labelled node in the remaining layers")
    checkpoint_every: int = _option(10, "epochs between checkpoints; 0: only at the end")
    keep: int = _option(2, "checkpoints kept beside the best")
    fail_on_checkpoint: bool = _option(False, "end the run when a checkpoint can't be written")
    time_margin: float = _option(60.0, "seconds before the time limit to stop, beside two epochs")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            _check(entry, getattr(self, entry.name))
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"{_flag(name)} must be at least {least}", value=getattr(self, name)
                )
        for name in ("dropout", "input_dropout", "attention_dropout", "labels_as_input"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} must be in [0, 1)", value=getattr(self, name))
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

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str, file: str | Path) -> Config:
        """Read a stored configuration; unknown names are refused."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError("holds no readable configuration", file=file) from error
        return from_mapping(values, file)


_LEAST: dict[str, float] = {
    "layers": 1, "hidden": 1, "heads": 1, "output_heads": 0,
    "bases": 0, "embedding": 0, "power": 1, "teleport": 0,
    "adversarial_steps": 0, "lr": 0, "weight_decay": 0, "step_size": 1, "epochs": 0, "patience": 0,
    "eval_every": 1, "split": 0, "seed": 0, "prefetch": 1, "checkpoint_every": 0, "keep": 1,
    "time_margin": 0,
}  # fmt: skip

_IGNORABLE = ("weights", "edge-features", "relations", "types", "features")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _flag(name: str) -> str:
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
        raise InputError(f"{_flag(entry.name)} must be {wanted}", value=value)
    choices = entry.metadata["choices"]
    if choices and value not in choices:
        raise InputError(f"{_flag(entry.name)} must be one of {', '.join(choices)}", value=value)


def parse_size(text: str) -> int:
    """Bytes of `64MiB`, `1.5GB`, `4096`."""
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
            group.add_argument(_flag(entry.name), action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(
                _flag(entry.name),
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
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"is no TOML: {error}", file=config_file) from error
        values = dataclasses.asdict(from_mapping(values, config_file))
    for entry in dataclasses.fields(Config):
        if hasattr(args, entry.name):
            values[entry.name] = getattr(args, entry.name)
    return Config(**values)
