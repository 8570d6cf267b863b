"""Any settings on any graph: equal losses and scores on 1, 2 and 3 ranks, with any savings.

Random settings and tiny random graphs, with isolated nodes, parts without nodes and parts without
labels, train for three epochs. One job of three ranks does it all: rank 0 alone beside ranks 1 and
2 together, then all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import EDGE_READERS, RELATION_READERS
from hpcgnn.models.settings import AGGREGATIONS, KINDS
from hpcgnn.settings import FREE
from hpcgnn.storage.read.load import sparse_rows
from hpcgnn.train.config import Config, options
from hpcgnn.train.configured import configured_trainer
from tests.graphs import Whole, collect, distribute, random_graph

pytestmark = pytest.mark.mpi
SEEDS = 100
MODELS = (
    "gcn",
    "sage",
    "gat",
    "gatv2",
    "gin",
    "rgcn",
    "appnp",
    "sgc",
    "dagnn",
    "transformer",
    "gine",
    "pna",
    "rgat",
    "deeper",
)
PLAIN = {
    "mode": "oneshot",
    "fewest_rows": False,
    "narrow_first": False,
    "cache_first": False,
    "prune": False,
    "recompute": False,
}
SAVING = {"mode": "sar"} | dict.fromkeys(list(PLAIN)[1:], True)


class Draw:
    """A graph, a configuration and the owners of nodes, all drawn by seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = MODELS[seed % len(MODELS)]
        self.sparse = self.chance(0.25)
        self.whole = self._graph(seed)
        self.config = self._config(seed)
        self.lopsided = self.chance(0.4)  # no labels beyond rank 0

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, *choices: object) -> object:
        return choices[self.rng.integers(len(choices))]

    def _graph(self, seed: int) -> Whole:
        nodes = int(self.rng.integers(5, 80))
        edge_width = 2 if self.model in EDGE_READERS and self.chance(0.5) else 0
        whole = random_graph(
            nodes,
            int(nodes * self.rng.uniform(0.6, 2)),
            seed,
            width=int(self.rng.integers(1, 9)),
            symmetric=self.chance(0.5),
            weighted=self.chance(0.5),
            num_relations=3 if self.model in RELATION_READERS else 0,
            edge_width=2 if self.model == "gine" else edge_width,
        )
        if self.sparse:
            whole.features[self.rng.random(whole.features.shape) < 0.6] = 0
        if self.chance(0.7):  # few targets, so that there is something to prune
            whole.split[whole.split == 1] = 2
        whole.split[self.rng.integers(nodes)] = 1
        whole.labels[self.rng.random(nodes) < 0.1] = -1
        whole.labels[whole.split == 1] = self.rng.integers(0, 3, int((whole.split == 1).sum()))
        return whole

    def _config(self, seed: int) -> Config:
        pick, chance = self.pick, self.chance
        dense = not self.sparse
        plain = chance(0.7)
        ignorable = "weights" if self.model == "gine" else "weights,edge-features"
        aggregations = AGGREGATIONS.get(self.model, ()) if dense and chance(0.5) else ()
        return Config.of(
            model=self.model,
            layers=pick(1, 2, 2, 3),
            hidden=pick(4, 8),
            heads=pick(1, 2),
            output_heads=pick(0, 3),
            dropout=pick(0.0, 0.4),
            input_dropout=pick(0.0, 0.0, 0.3),
            attention_dropout=pick(0.0, 0.3),
            norm=pick(*["none"] * 3, "layer", "batch", "graph"),
            activation=pick("relu", "elu"),
            residual=plain and chance(0.3),
            head=pick("conv", "linear"),
            jumping=pick(*["none"] * 6, "cat", "max") if plain else "none",
            bases=pick(0, 2),
            aggr=pick("auto", *aggregations),
            block="plain" if plain else pick("res", "res+"),
            embedding=pick(0, 0, 3),
            power=pick(1, 2, 3, 4),
            labels_as_input=0.5 if dense and chance(0.2) else 0.0,
            adversarial_steps=2 if dense and chance(0.2) else 0,
            ignore=pick("none", "none", ignorable),
            optimizer="sgd",
            lr=0.05,
            epochs=3,
            checkpoint_every=0,
            seed=seed,
            weight_decay=pick(0.0, 1e-3),
            schedule=pick("constant", "cosine", "step"),
        )

    def savings(self) -> list[tuple[int, dict[str, object]]]:
        """Return ranks and settings: no or all savings on one rank, some on two and three."""
        some = {"mode": self.pick("sar", "sa", "oneshot")}
        others = {"mode": self.pick("sar", "sa", "oneshot")}
        for name in list(PLAIN)[1:]:
            some[name] = self.chance(0.5)
            others[name] = not some[name]
        return [(1, PLAIN), (1, SAVING), (2, some), (3, others)]

    def owner(self, ranks: int) -> np.ndarray:
        owner = self.rng.integers(0, ranks, self.whole.num_nodes)
        if self.chance(0.4):
            owner[owner == self.rng.integers(ranks)] = 0
        if self.lopsided:
            owner[self.whole.split == 1] = 0
        return owner.astype(np.int32)


def made_sparse(rows: torch.Tensor) -> object:
    dense = rows.numpy()
    row, column = np.nonzero(dense)
    counts = np.bincount(row, minlength=len(dense))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sparse_rows(indptr, column, dense[row, column], dense.shape[1])


def train(
    draw: Draw,
    comm: Communicator,
    owner: np.ndarray,
    saved: dict[str, object],
    buffer: int,
    folder: Path,
) -> dict[str, torch.Tensor]:
    """Return losses and scores of three epochs, and the final logits by node id."""
    graph: PartitionedGraph = distribute(draw.whole, comm, owner, halo_buffer=buffer)
    if draw.sparse:
        graph = replace(graph, features=made_sparse(graph.features))
    trainer = configured_trainer(graph, draw.config.changed(**saved), folder)
    records = [trainer._epoch(epoch) for epoch in (1, 2, 3)]
    trainer.model.eval()
    with torch.no_grad():
        logits = collect(graph, trainer.output())
    trainer.store.close()
    names = ("train", "valid", "test")
    scores = [record[name] for record in records for name in names if record[name] is not None]
    return {
        "losses": torch.tensor([record["loss"] for record in records]),
        "scores": torch.tensor(scores),
        "logits": logits,
    }


def runs(draw: Draw, worlds: dict[int, Communicator], folder: Path) -> dict[str, dict]:
    """Return this rank's results by number of ranks and settings; every rank makes all draws."""
    found = {}
    for number, (ranks, saved) in enumerate(draw.savings()):
        owner, buffer = draw.owner(ranks), draw.pick(4096, 1 << 20)
        if ranks in worlds:
            name = f"{ranks} ranks with {saved}"
            found[name] = train(draw, worlds[ranks], owner, saved, buffer, folder / str(number))
    return found


@pytest.fixture
def worlds(comm) -> Iterator[dict[int, Communicator]]:
    """Return communicators by size: rank 0 alone, or ranks 1 and 2; then all three."""
    if comm.size != 3:
        pytest.skip("needs 3 ranks, which make 1, 2 and 3")
    half = MPI.COMM_WORLD.Split(min(comm.rank, 1))
    part = Communicator(half, timeout=120)
    half.Free()
    yield {part.size: part, 3: comm}
    part.close()


def test_random_settings_give_the_same_losses_and_scores(comm, worlds, shared_path):
    for seed in range(SEEDS):
        draw = Draw(seed)
        own = runs(draw, worlds, shared_path / str(seed))
        found = {name: one for part in comm.allgather(own) for name, one in part.items()}
        (plain, expected), *others = found.items()
        top = expected["logits"].topk(2, dim=1).values
        sure = bool((top[:, 0] - top[:, 1]).min() > 1e-3)  # else rounding may decide on a class
        assert plain.startswith("1 ") and len(others) == 3
        for name, one in others:
            for key in ("losses", "logits", "scores"):
                if key == "scores" and not sure:
                    continue
                torch.testing.assert_close(
                    one[key],
                    expected[key],
                    rtol=1e-3,
                    atol=1e-4,
                    equal_nan=True,
                    msg=lambda text, s=seed, k=key, n=name: f"seed {s}: {k} on {n}: {text}",
                )


def test_the_random_settings_include_every_model_and_saving():
    free = {
        name
        for name, place in options().items()
        if place.setting.resume == FREE and isinstance(place.setting.default, bool)
    }
    assert set(MODELS) == set(KINDS)
    assert set(PLAIN) == (free - {"fail_on_checkpoint"}) | {"mode"}
