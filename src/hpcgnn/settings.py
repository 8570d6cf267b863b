"""Declarations of settings: default, help, choices, limits, and whether resuming may change it.

Each package that has settings declares a `Section` of them; `train/config.py` combines them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError

MOST_BYTES = 1 << 60
MOST_TEXT = 1 << 20  # bytes of a settings file
HIGHEST = (1 << 31) - 1  # seed, as METIS accepts it
LEAST_BUFFER = 4096  # bytes for remote rows
DEFINING, TOLD, FREE = "defining", "told", "free"
_WORD = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?:{_WORD}[ \t]*+\.[ \t]*+){{32}}")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}

Value = bool | int | float | str


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, besides its name in the section.

    Attributes:
        resume: `DEFINING` (another value makes it another run), `TOLD` (may change on resume, with
            a message, since the results will differ) or `FREE` (may change on resume).
        option: its name on the command line and in files, if that differs from its name.
        least, most: limits of a number, both inclusive; None: no limit.
        share: a number that must be in [0, 1).
        metavar: what an option shows for the value, if not its type.
        others: a regular expression of texts accepted besides `choices`; options show
            `shown_others` for them, if it is not empty.
    """

    resume: str
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    option: str = ""
    least: float | None = None
    most: float | None = None
    share: bool = False
    others: str = ""
    shown_others: str = ""
    metavar: str = ""


def _declare(resume: str, default: Any, help_text: str, *args: Any, **limits: Any) -> Any:
    setting = Setting(resume, default, help_text, *args, **limits)
    return field(default=default, metadata={"setting": setting})


defining = partial(_declare, DEFINING)
told = partial(_declare, TOLD)
free = partial(_declare, FREE)


@dataclass(frozen=True)
class Section:
    """The settings of one package: a frozen dataclass with `defining`, `told` or `free` fields.

    Raises:
        InputError: a value has the wrong type, or is out of its limits.
    """

    def __post_init__(self) -> None:
        for name, setting in declared(type(self)).items():
            _check(flag(setting.option or name), setting, getattr(self, name))
        self.check()

    def check(self) -> None:
        """Refuse settings that do not fit together."""


def declared(section: type[Section]) -> dict[str, Setting]:
    """Return the settings of a section by name."""
    return {entry.name: entry.metadata["setting"] for entry in dataclasses.fields(section)}


def flag(name: str) -> str:
    """Return the option of a setting, as in `--weight-decay`."""
    return "--" + name.replace("_", "-")


def _check(name: str, setting: Setting, value: Any) -> None:
    kind = type(setting.default)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        wrong = False
    wanted = _KINDS[kind]
    if not wrong and isinstance(value, float) and not math.isfinite(value):
        wrong, wanted = True, "a finite number"
    if wrong:
        raise InputError(
            f"{name} must be {wanted}", value=_shown(value) if isinstance(value, int) else value
        )
    if kind in (int, float):
        check_range(name, value, setting.least, setting.most)
    if setting.share and not 0 <= value < 1:
        raise InputError(f"{name} must be in [0, 1)", value=_shown(value))
    if setting.choices and value not in setting.choices and not _is_other(setting, value):
        more = f", or {setting.shown_others}" if setting.shown_others else ""
        meant = nearest(str(value), setting.choices)
        raise InputError(
            f"{name} must be one of {', '.join(setting.choices)}{more}{meant}", value=value
        )


def _is_other(setting: Setting, value: Any) -> bool:
    return bool(setting.others) and re.fullmatch(setting.others, value) is not None


def check_range(
    name: str, value: float, least: float | None = None, most: float | None = None
) -> None:
    """Refuse a number outside `least .. most`, and one that is not finite.

    Raises:
        InputError: `name` with the limit and the value.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be a finite number", value=value)
    if least is not None and value < least:
        raise InputError(f"{name} must be at least {int(least):,}", value=_shown(value))
    if most is not None and value > most:
        raise InputError(f"{name} must be at most {int(most):,}", value=_shown(value))


def _shown(value: float) -> float | None:
    """Return the value as errors show it, None for an integer too long to print."""
    return None if isinstance(value, int) and value.bit_length() > 128 else value


def parse_size(text: str) -> int:
    """Return the bytes of `64MiB`, `1.5GB` or `4096`; at most 1 EiB."""
    powers = {"k": 1, "m": 2, "g": 3}
    units = {"": 1, "b": 1}
    for letter, power in powers.items():
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    number = text.strip().rstrip("bBkKmMgGiI")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise InputError("not a size; write it as in 256MiB", value=text) from None
    if size <= 0:
        raise InputError("a size must be above 0", value=text)
    if size > MOST_BYTES:
        raise InputError("a size must be at most 1 EiB", value=text)
    return size


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of these pairs; `json` itself would keep the last of equal names.

    Raises:
        ValueError: a name occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML text.

    Raises:
        ValueError: it is not TOML, or has a key of too many words: `tomllib` takes the square of
            their number.
        RecursionError: arrays or tables are nested too deeply.
    """
    if _LONG_KEY.search(text):
        raise ValueError("a key has more than 32 words with dots between")
    return tomllib.loads(text)


def read_text(path: Path) -> str:
    """Return the content of a settings file.

    Raises:
        InputError: it can't be read, is too long, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_TEXT + 1)  # reading a device may never end
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", file=path) from None
    if len(content) > MOST_TEXT:
        raise InputError(
            f"is longer than {MOST_TEXT >> 20} MiB: this is not a settings file", file=path
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error}", file=path) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `: did you mean ...?` with at most two words, or "" if no known word is near."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.75)
    # In a short word, two swapped letters are below the cutoff.
    found = found or [other for other in known if sorted(other) == sorted(word)][:2]
    return f": did you mean {' or '.join(found)}?" if found else ""


def check_path(path: object, who: str, name: str) -> None:
    """Raise InputError unless it names a file or folder."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{who}: {name} must be a path", value=type(path).__name__)
