"""Where the seconds of an epoch go, in parts that add up to it."""

from __future__ import annotations

from typing import Any

from hpcgnn.report.run import RunFiles

# By the name of the part: what a legend says.
PARTS = {
    "compute": "compute",
    "pack": "packing",
    "wait": "waiting for messages",
    "reduce": "all-reduce of gradients",
    "evaluate": "evaluation",
    "checkpoint": "checkpoint",
    "other": "other",
}


def _split(seconds: dict[str, float]) -> dict[str, float]:
    """Parts from measured seconds; packing and waiting are taken from the passes they lie in."""
    passes = seconds["forward"] + seconds["backward"]
    reduce, evaluate, checkpoint = (seconds[n] for n in ("reduce", "evaluate", "checkpoint"))
    pack, wait = seconds["pack"], seconds["wait"]
    # Evaluation sends messages too: what is left over of them is its own.
    inner = max(passes - reduce, 0.0)
    share = inner / (inner + evaluate) if inner + evaluate else 0.0
    pack, wait = min(share * pack, inner), min(share * wait, inner)
    pack, wait = (pack, wait) if pack + wait <= inner else (pack, max(inner - pack, 0.0))
    parts = {
        "compute": inner - pack - wait,
        "pack": pack,
        "wait": wait,
        "reduce": min(reduce, passes),
        "evaluate": evaluate,
        "checkpoint": checkpoint,
    }
    return parts | {"other": max(seconds["epoch"] - sum(parts.values()), 0.0)}


def per_epoch(record: dict[str, Any]) -> dict[str, float]:
    """Seconds by part, of one record of metrics.jsonl, as means over the ranks.

    What older records lack counts as nothing of its own.
    """

    def value(name: str) -> float:
        number = record.get(name, 0.0)
        return float(number["mean"] if isinstance(number, dict) else number or 0.0)

    checkpoint = value("checkpoint_seconds")
    return _split(
        {
            # A checkpoint is written after the epoch's own clock has stopped.
            "epoch": value("epoch_seconds") + checkpoint,
            "forward": value("forward_seconds"),
            "backward": value("backward_seconds"),
            "reduce": value("reduce_seconds"),
            "evaluate": value("evaluate_seconds"),
            "checkpoint": checkpoint,
            "pack": value("pack_seconds"),
            "wait": value("comm_wait_seconds"),
        }
    )


def per_rank(run: RunFiles) -> dict[str, list[float]]:
    """Seconds by part, for each rank, of the last epoch that has them; empty without any."""
    if run.ranks is None or "forward_seconds" not in run.ranks.numbers:
        return {}
    numbers = run.ranks.numbers
    count = len(numbers["forward_seconds"])
    none = [0.0] * count
    columns = {
        "epoch": numbers.get("epoch_seconds", none),
        "forward": numbers["forward_seconds"],
        "backward": numbers.get("backward_seconds", none),
        "reduce": numbers.get("reduce_seconds", none),
        "evaluate": numbers.get("evaluate_seconds", none),
        "checkpoint": none,
        "pack": numbers.get("pack_seconds", none),
        "wait": numbers.get("comm_wait_seconds", none),
    }
    splits = [_split({n: values[rank] for n, values in columns.items()}) for rank in range(count)]
    return {part: [split[part] for split in splits] for part in PARTS}
