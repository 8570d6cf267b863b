"""Pruned training passes give the same losses and send fewer bytes."""

import numpy as np
import pytest

from hpcgnn.train.config import Config
from hpcgnn.train.loop import Trainer
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "gatv2", "gin", "rgcn"])
def test_same_losses_fewer_bytes(comm, shared_path, model, weighted):
    whole = random_graph(300, 500, seed=2, weighted=weighted, num_relations=3)
    whole.split[:] = 0
    whole.split[::40] = 1
    losses, sent = {}, {}
    for prune in (False, True):
        graph = distribute(whole, comm, halo_buffer=4096)
        config = Config(
            model=model, layers=3, hidden=8, heads=2, dropout=0.3, norm="layer", residual=True,
            attention_dropout=0.2, epochs=3, eval_every=10, prune=prune, halo_buffer="4096",
            fewest_rows=False,
        )  # fmt: skip
        folder = shared_path / str(prune)
        trainer = Trainer(graph, config, folder)
        assert (trainer.flow is not None) == prune
        before = graph.ring.bytes_sent
        for epoch in (1, 2):
            trainer._epoch(epoch)
        losses[prune] = [trainer._epoch(3)["loss"]]
        sent[prune] = comm.allreduce(graph.ring.bytes_sent - before)
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)
    assert sent[True] < 0.7 * sent[False] or comm.size == 1
