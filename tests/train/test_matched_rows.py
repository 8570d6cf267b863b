"""Learned rows of a later graph's nodes, found by their ids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcgnn.errors import InputError
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.matched_rows import matched_rows
from hpcgnn.train.predict import read_checkpoint
from tests.graphs import collect, distribute, random_graph

pytestmark = pytest.mark.mpi


def test_known_nodes_get_their_rows_and_new_ones_the_mean_of_their_type(comm, shared_path, capfd):
    first = distribute(random_graph(40, 160, seed=1), comm)
    settings = {"model": "sage", "hidden": 4, "epochs": 2, "embedding": 3}
    trainer = configured_trainer(first, Config.of(**settings), shared_path)
    trainer.run()
    comm.barrier()
    learned = collect(first, trainer.model.inputs.embedding.weight.detach()).numpy()
    rng = np.random.default_rng(0)
    earlier = rng.permutation(np.r_[np.arange(30), np.full(20, -1)])
    types = rng.integers(0, 2, 50)
    later = distribute(random_graph(50, 200, seed=2), comm)
    mine = later.node_ids.numpy()
    later = replace(
        later,
        nodes={"row_in_like": torch.from_numpy(earlier[mine])},
        node_types=torch.from_numpy(types[mine]),
        num_types=3,  # no node has the last one
        typed_features={1: torch.zeros(int((types[mine] == 1).sum()), 2)},
    )
    path, _ = read_checkpoint(shared_path / "checkpoints" / "last.h5", comm)
    capfd.readouterr()
    found = matched_rows(path, later)["model.inputs.embedding.weight"]
    known = earlier >= 0
    means = [learned[earlier[known & (types == kind)]].mean(axis=0) for kind in (0, 1)]
    expected = np.where(known[:, None], learned[earlier], np.array(means)[types])
    whole = collect(later, torch.from_numpy(found)).numpy()
    np.testing.assert_array_equal(whole[known], expected[known])
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    new, total = int((~known & (types == 0)).sum()), int((types == 0).sum())
    note = f"note: nodes without features that the graph trained on lacks: {new} of {total};"
    assert (note in capfd.readouterr().err) == (comm.rank == 0)
    broken = replace(later, nodes={"row_in_like": torch.zeros(len(mine))})
    with pytest.raises(InputError, match="row_in_like: must be a number for each node"):
        matched_rows(path, broken)
