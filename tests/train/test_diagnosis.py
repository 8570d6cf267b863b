"""Numbers that are not finite are traced to epoch, rank and layer."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from hpcgnn.errors import NumericalError
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.trainer import Trainer
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi
SETTINGS = {"layers": 3, "hidden": 8, "halo_buffer": "4096", "epochs": 4, "checkpoint_every": 1}


def make(comm, folder, **changes: object) -> Trainer:
    graph = distribute(random_graph(60, 240, seed=1), comm, halo_buffer=4096)
    graph = replace(graph, graph_fingerprint="f" * 16)
    return configured_trainer(graph, Config.of(**(SETTINGS | changes)), folder, resume=True)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_layer_and_rank_of_the_first_nan_are_named(comm, shared_path, layer):
    make(comm, shared_path, epochs=2).run()
    trainer, last = make(comm, shared_path), comm.size - 1
    if comm.rank == last:
        with torch.no_grad():
            next(trainer.model.stack.convs[layer - 1].parameters())[0, 0] = math.nan
    checkpoint = shared_path / "checkpoints" / "epoch-000002.h5"
    with pytest.raises(NumericalError) as caught:
        trainer.run()
    text = str(caught.value)
    assert text.startswith(f"the loss is nan in epoch 3, first in layer {layer} (stack.convs.")
    assert text.endswith(f"; lower --lr; last good checkpoint: {checkpoint}")
    ranks = re.search(r" on ranks? ([\d, ]+)", text).group(1).split(", ")
    assert str(last) in ranks or " more" in text  # at most four ranks are named


@pytest.mark.parametrize("model", [{"embedding": 3}, {}], ids=str)
def test_a_non_finite_gradient_is_reported_before_it_is_used(comm, shared_path, model):
    make(comm, shared_path, epochs=2, **model).run()
    trainer, last = make(comm, shared_path, **model), comm.size - 1
    first = next(iter(trainer.model.parameters()))
    before = first.detach().clone()
    if comm.rank == last:
        first.register_hook(lambda grad: grad * math.inf)
    place = "inputs.embedding.weight" if model else r"layer 1 \(stack.convs.0.*\)"
    wanted = rf"a gradient is not finite in epoch 3, first in {place} on rank {last}; .*000002.h5"
    with pytest.raises(NumericalError, match=wanted):
        trainer.run()
    assert torch.equal(first, before)
