"""Settings of what is learned, and properties of metrics by name."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.settings import Section, declared, defining, flag, told

_SHARES = re.compile(r"(valid )?(.*_)?(accuracy|f1|hits(@\d+)?)", re.IGNORECASE)
_RANKINGS = re.compile(r"(valid )?(.*_)?(auc|average_precision|mrr)", re.IGNORECASE)
_ERRORS = ("mae", "rmse", "mse", "loss", "valid_loss")
KINDS = (
    "auto",
    "classes",
    "labels",
    "values",
    "edge-classes",
    "edge-labels",
    "edge-values",
    "links",
)
METRICS = (
    "auto",
    "accuracy",
    "f1",
    "macro_f1",
    "auc",
    "average_precision",
    "mae",
    "rmse",
    "r2",
    "mrr",
    "hits",
)
NONE, BALANCED = "none", "balanced"
LABELS = "labels"  # the target that is not a named array
_OF_EDGES = ("edge-classes", "edge-labels", "edge-values")
_READ_BY = {  # the kinds of task that use a setting, unless all do
    "target": ("classes", "labels", "values"),
    "class_weights": ("classes", "edge-classes"),
    "label_smoothing": ("classes", "edge-classes"),
    "positive_weights": ("labels", "edge-labels"),
    "loss": ("values", "edge-values"),
    "huber_delta": ("values", "edge-values"),
    "node_weights": ("values",),
    "decoder": ("links", *_OF_EDGES),
    "pair_width": ("links", *_OF_EDGES),
    "negatives": ("links",),
    "ranked_against": ("links",),
    "hits_at": ("links",),
}
LEAST_WEIGHT, MOST_WEIGHT = 1e-12, 1e12  # of a class; a mean of losses in float32 holds no more
IN_LOSS = (
    "class_weights",
    "label_smoothing",
    "positive_weights",
    "loss",
    "huber_delta",
    "node_weights",
    "negatives",
)


def shown(metric: str, value: float | None) -> str:
    """Return a value of a metric as text for display, shares in percent."""
    if value is None:
        return "-"
    if _SHARES.fullmatch(metric):
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if _RANKINGS.fullmatch(metric) else f"{value:.4g}"


def larger_is_better(metric: str) -> bool | None:
    """Return whether larger values of a built-in metric are better; None for other metrics."""
    if metric in _ERRORS:
        return False
    larger = metric == "r2" or _SHARES.fullmatch(metric) or _RANKINGS.fullmatch(metric)
    return True if larger else None


def limits(metric: str) -> tuple[float, float]:
    """Return the least and the largest possible value of a built-in metric or loss."""
    if metric == "r2":
        return -math.inf, 1.0
    if _SHARES.fullmatch(metric) or _RANKINGS.fullmatch(metric):
        return 0.0, 1.0
    return (0.0 if metric in _ERRORS else -math.inf), math.inf


@dataclass(frozen=True)
class TaskSettings(Section):
    """Settings of what is learned about nodes, edges or pairs of nodes."""

    kind: str = defining("auto", "what is learned; auto: the labels of nodes", KINDS, option="task")
    target: str = defining(
        "labels", "what to learn of the nodes: labels, or the name of a node array"
    )
    class_weights: str = told(
        NONE, "weights of classes in the loss: none, balanced, or numbers separated by commas"
    )
    label_smoothing: float = told(
        0.0, "share of the target that is spread over all classes", share=True
    )
    positive_weights: str = told(
        NONE,
        "several labels: weights of positive labels in the loss: none, balanced, or one or more "
        "numbers",
    )
    loss: str = told("mse", "loss for numbers", ("mse", "mae", "huber"))
    huber_delta: float = told(1.0, "where the Huber loss becomes linear", least=0, most=1e12)
    node_weights: str = told(NONE, "name of the node array with weights in the loss for numbers")
    decoder: str = defining(
        "dot", "links: how two nodes are scored; edges: always mlp", ("dot", "mlp")
    )
    pair_width: int = defining(
        64, "width of the node rows that edges and links are decoded from", least=1, most=1 << 16
    )
    negatives: int = told(1, "links: negative pairs drawn per true pair", least=1, most=10_000)
    ranked_against: int = defining(
        100, "links: negative pairs that a true pair is ranked among", least=1, most=1 << 20
    )
    hits_at: int = defining(10, "links: k of the metric hits", least=1, most=1 << 30)

    @property
    def on_pairs(self) -> bool:
        """Whether edges or links are learned, which are decoded from rows of `pair_width`."""
        return self.kind == "links" or self.kind.startswith("edge-")

    def check(self) -> None:
        for name in ("class_weights", "positive_weights"):
            text = getattr(self, name)
            if text not in (NONE, BALANCED):
                weights(text, "--" + name.replace("_", "-"))

    def check_read(self, kind: str) -> None:
        """Refuse settings that a task of this kind, one of `KINDS` but `auto`, doesn't use.

        Raises:
            InputError: such a setting is given.
        """
        for name, kinds in _READ_BY.items():
            value = getattr(self, name)
            if kind not in kinds and value != declared(TaskSettings)[name].default:
                raise InputError(
                    f"{flag(name)} is for --task {' or '.join(kinds)}, and this task is {kind}: "
                    "leave it out",
                    value=value,
                )


def weights(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers in a comma-separated list.

    Raises:
        InputError: the text is something else, or a number is not finite or negative.
    """
    return checked_weights(text.split(","), option, "none, balanced, or ", shown=text)


def checked_weights(
    given: object, name: str, also: str = "", *, shown: object = None
) -> tuple[float, ...]:
    """Numbers, each 0 or within what a loss can hold.

    Args:
        given: any sequence, array or tensor of numbers.
        also: what the setting takes besides, for the message.
        shown: what the message shows; `given` without it.

    Raises:
        InputError: it is something else, or a number is not finite, negative, too small or large.
    """
    try:
        found = tuple(float(value) for value in given) if not isinstance(given, str) else ()  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        found = ()
    if not found or not all(w == 0 or LEAST_WEIGHT <= w <= MOST_WEIGHT for w in found):
        raise InputError(
            f"{name} takes {also}numbers{' separated by commas' if also else ''}, each 0 or from "
            f"{LEAST_WEIGHT:.0e} to {MOST_WEIGHT:.0e}",
            value=given if shown is None else shown,
        )
    return found


def nothing_to_learn(missing: str) -> InputError:
    """Return the error that the nodes have no labels, or no split, named by `missing`."""
    return InputError(
        f"the graph has no {missing}: there is nothing to learn (convert: --label COLUMN, "
        "--split-ratio 8,1,1); of its edges: --task links, or edge-classes where they have labels"
    )


def check_stored(
    settings: TaskSettings, *, edge_labels: bool, edge_split: bool, arrays: Collection[str]
) -> None:
    """Check that the graph holds what a task of its edges, or of a named array, is learned from.

    Args:
        edge_labels, edge_split: whether the edges have them.
        arrays: named arrays of the nodes.

    Raises:
        InputError: the graph lacks it.
    """
    if settings.kind == "links":
        if not edge_split:
            raise InputError(
                "--task links needs a split of the edges: convert --link-split makes one"
            )
    elif settings.on_pairs:
        if not (edge_labels and edge_split):
            raise InputError(
                f"--task {settings.kind} needs labels and a split of the edges: "
                "convert --edge-label COLUMN (or --edge-labels L.npy), and --link-split 0.8,0.1,0.1"
            )
    elif settings.target != LABELS and settings.target not in arrays:
        names = ", ".join(arrays) or "none"
        raise InputError(f"the graph has no array of this name: {names}", value=settings.target)
