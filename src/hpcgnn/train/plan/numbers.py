"""A graph that is given only by its counts."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.models.demands import Facts, check_host_features
from hpcgnn.settings import check_range
from hpcgnn.train.config import Config
from hpcgnn.train.open import check_training
from hpcgnn.train.plan.estimate import Shape

_MOST = 1 << 50


@dataclass(frozen=True)
class GraphNumbers:
    """The counts of the graph. `labelled`: share of the nodes that are trained on."""

    nodes: int
    edges: int
    features: int = 0
    classes: int = 2
    relations: int = 0
    edge_width: int = 0
    labelled: float | None = None
    weighted: bool = False
    symmetric: bool = True

    def check(self, config: Config) -> None:
        """Refuse what `train` would refuse, and impossible counts.

        Raises:
            InputError: naming the option.
        """
        check_range("--nodes", self.nodes, 1, _MOST)
        check_range("--edges", self.edges, 0, _MOST)
        for name in ("features", "classes", "relations", "edge_width"):
            least = 1 if name == "classes" else 0
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), least, 1 << 24)
        if self.labelled is not None and not 0 < self.labelled <= 1:
            raise InputError("--labelled must be in (0, 1]", value=self.labelled)
        facts = Facts(
            features="dense" if self.features else "none",
            labels=True,
            multilabel=config.task.kind == "labels",
            num_outputs=self.classes,
            num_relations=self.relations,
            edge_width=self.edge_width,
        )
        check_training(config, facts)
        on_host = config.device.kind == "cuda" and config.device.features_on == "host"
        if on_host and self.features:
            check_host_features(config.model, adversarial=config.training.adversarial_steps > 0)

    def shape(self, config: Config) -> Shape:
        """Return the graph's shape as one part."""
        stored = 1 + self.weighted + (self.relations > 0) + self.edge_width
        return Shape(
            ranks=1,
            nodes=self.nodes,
            edges=self.edges,
            features=self.features,
            outputs=config.task.pair_width if config.task.on_pairs else self.classes,
            halo=0,
            volume=0,
            edge_bytes=4 * stored,
            relations=self.relations,
            symmetric=self.symmetric,
            labelled=self.labelled,
        )
