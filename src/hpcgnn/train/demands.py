"""What settings ask of a graph, so that `plan` refuses what `train` and `predict` would."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.train.config import Config

_ADDS_FEATURES_FIRST = ("gin", "rgcn")


@dataclass(frozen=True)
class Facts:
    """What a graph has.

    Attributes:
        features: `dense`, `sparse`, `typed` (rows per node type) or `none`.
        labels: whether nodes have labels and splits.
        multilabel: several labels at once.
        num_outputs: classes, or labels at once.
    """

    features: str
    labels: bool
    multilabel: bool
    num_outputs: int
    num_relations: int


def check_training(config: Config, facts: Facts) -> None:
    """All that training asks for and a header tells.

    Raises:
        InputError: the graph lacks it.
    """
    if not facts.labels:
        raise InputError("the graph has no labels or no split, so nothing can be learned from it")
    chosen_metric(config.metric, facts.multilabel, facts.num_outputs)
    check_model(config, facts)
    if config.adversarial_steps and facts.features == "sparse" and not config.embedding:
        raise InputError("--adversarial-steps needs dense features")


def check_model(config: Config, facts: Facts) -> None:
    """What the model reads.

    Raises:
        InputError: the graph lacks it.
    """
    if facts.features == "none" and not config.embedding:
        raise InputError("the graph has no node features; give --embedding WIDTH to learn some")
    if config.model == "rgcn" and not facts.num_relations:
        raise InputError("--model rgcn needs relations; convert the graph from triples")
    if config.labels_as_input:
        if not facts.labels or facts.multilabel:
            raise InputError("--labels-as-input needs one class per node and a split")
        if facts.features == "sparse" and not config.embedding:
            raise InputError("--labels-as-input needs dense features")


def check_host_features(config: Config) -> None:
    """Features that stay on the host, with a GPU.

    Raises:
        InputError: this model doesn't multiply them before all else.
    """
    if config.model in _ADDS_FEATURES_FIRST or config.embedding or config.adversarial_steps:
        raise InputError(
            "--features-on host needs a model that multiplies the features before all else: "
            "gcn, sage, gat, gatv2, sgc, appnp or dagnn, without --embedding and "
            "--adversarial-steps"
        )


def chosen_metric(metric: str, multilabel: bool, num_outputs: int) -> str:
    """`accuracy`, `auc` or `f1`.

    Raises:
        InputError: one that doesn't fit the labels.
    """
    if metric == "auto":
        return "f1" if multilabel else "accuracy"
    if metric == "auc" and not multilabel and num_outputs != 2:
        raise InputError("--metric auc needs two classes", value=num_outputs)
    if metric == "f1" and not multilabel:
        raise InputError("--metric f1 needs several labels per node; use accuracy")
    if metric == "accuracy" and multilabel:
        raise InputError("--metric accuracy needs one class per node; use f1 or auc")
    return metric
