"""What the name of a metric says: whether it is a share, and which values are better."""

from __future__ import annotations

import re

_SHARES = re.compile(
    r"(valid )?(.*_)?(accuracy|f1|auc|average_precision|mrr|hits(@\d+)?)", re.IGNORECASE
)


def shown(metric: str, value: float | None) -> str:
    """A value of a metric for people: shares in percent."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if _SHARES.fullmatch(metric) else f"{value:.4g}"


def larger_is_better(metric: str) -> bool | None:
    """Whether larger values of a metric of the built-in tasks are better; None of another one."""
    if metric in ("mae", "rmse", "mse"):
        return False
    return True if metric == "r2" or _SHARES.fullmatch(metric) else None
