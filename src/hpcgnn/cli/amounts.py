"""Short texts of amounts, rates and durations, and the peak memory."""

from __future__ import annotations

import resource


def amounts(
    value: float, total: float | None, unit: str, seconds: float, *, short: bool = False
) -> str:
    """Return e.g. `43 % of 1.2 M edges, 0.1 M edges/s, 12 s left`; `short` omits the total."""
    rate = value / seconds
    text = amount(value, unit) if total is None else f"{100 * value / max(total, 1):.0f} %"
    if total is not None and not short:
        text += f" of {amount(total, unit)}"
    text += f", {amount(rate, unit)}/s"
    if total is not None and 0 < value < total and rate > 0:
        text += f", {duration((total - value) / rate)} left"
    return text


def amount(number: float, unit: str) -> str:
    """Return e.g. `1.23 M edges` or `1.23 MB`."""
    text = brief(number)
    return f"{text}{unit}" if unit == "B" and text[-1].isalpha() else f"{text} {unit}"


def brief(number: float) -> str:
    """Return three digits and a letter, as in `1.23 M`."""
    for letter in ("", " k", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.3g}{letter}"
        number /= 1000
    return f"{number:.3g} T"


def duration(seconds: float) -> str:
    """Return e.g. `12 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def peak() -> str:
    """Return the peak memory of this process, as `123 MB`."""
    return f"{brief(peak_bytes())}B"
