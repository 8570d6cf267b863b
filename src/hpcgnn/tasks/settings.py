"""Settings of what is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.settings import Section, defining, told

KINDS = (
    "auto", "classes", "labels", "values", "edge-classes", "edge-labels", "edge-values", "links",
)  # fmt: skip
METRICS = (
    "auto", "accuracy", "f1", "macro_f1", "auc", "average_precision", "mae", "rmse", "r2", "mrr",
    "hits",
)  # fmt: skip
NONE, BALANCED = "none", "balanced"


@dataclass(frozen=True)
class TaskSettings(Section):
    """What is learned, of nodes, edges or pairs of nodes."""

    kind: str = defining("auto", "what is learned; auto: the labels of nodes", KINDS, option="task")
    target: str = defining(
        "labels", "what of the nodes is learned: labels, or the name of an array of the nodes"
    )
    class_weights: str = told(
        NONE, "weights of classes in the loss: none, balanced, or numbers with commas between"
    )
    label_smoothing: float = told(0.0, "share of a target spread over all classes", share=True)
    positive_weights: str = told(
        NONE, "several labels: weights of ones in the loss: none, balanced, or one or more numbers"
    )
    loss: str = told("mse", "loss of numbers", ("mse", "mae", "huber"))
    huber_delta: float = told(1.0, "where the Huber loss becomes linear", least=0, most=1e30)
    node_weights: str = told(NONE, "name of the array of weights of nodes in the loss of numbers")
    decoder: str = defining(
        "dot", "links: the score of two nodes; edges: always mlp", ("dot", "mlp")
    )
    pair_width: int = defining(
        64, "width of a node's row that edges and links are read off", least=1, most=1 << 16
    )
    negatives: int = told(1, "links: false pairs drawn for a true one", least=1, most=10_000)
    ranked_against: int = told(
        100, "links: false pairs that a true one is ranked among", least=1, most=1 << 20
    )
    hits_at: int = told(10, "links: k of the metric hits", least=1, most=1 << 30)

    def check(self) -> None:
        for name in ("class_weights", "positive_weights"):
            text = getattr(self, name)
            if text not in (NONE, BALANCED):
                weights(text, "--" + name.replace("_", "-"))


def weights(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
        InputError: it is something else, or a number is not finite or negative.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(math.isfinite(value) and value >= 0 for value in found):
        raise InputError(
            f"{option} takes none, balanced, or numbers of at least 0 with commas between",
            value=text,
        )
    return found
