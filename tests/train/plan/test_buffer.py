"""The smallest halo buffer that `plan` accepts is the smallest with which a model trains."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hpcgnn.errors import InputError
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.plan.buffer import check_buffer
from hpcgnn.train.plan.shapes import shape_of
from tests.graphs import distribute, random_graph

WIDE = {"layers": 2, "hidden": 27, "heads": 3, "epochs": 1, "prefetch": 64}


@pytest.mark.mpi
@pytest.mark.several_ranks
@pytest.mark.parametrize("kind", ["gcn", "gat", "gatv2", "sgc", "transformer", "rgcn"])
@pytest.mark.parametrize(("mode", "precision"), [("sar", "fp32"), ("sa", "fp32"), ("sar", "bf16")])
def test_the_least_buffer_of_a_model(comm, shared_path, kind, mode, precision):
    whole = random_graph(60, 400, seed=1, width=40, num_relations=2)
    config = Config.of(model=kind, mode=mode, precision=precision, halo_buffer="4096", **WIDE)
    graph = distribute(whole, comm, halo_buffer=4096, prefetch=64, mode=mode)
    shape = replace(shape_of(graph), ranks=comm.size)
    with pytest.raises(InputError, match="too small for one row") as refused:
        check_buffer(shape, config)
    least = int(re.search(r"at least (\d+) bytes", str(refused.value))[1])
    for size in (least, least - 1):
        config = config.changed(halo_buffer=str(size))
        graph = distribute(whole, comm, halo_buffer=size, prefetch=64, mode=mode)
        trainer = configured_trainer(graph, config, shared_path / str(size))
        if size == least:
            check_buffer(shape, config)
            trainer.run()
            continue
        for refusal in (lambda: check_buffer(shape, config), trainer.run):  # noqa: B023
            with pytest.raises(InputError, match=f"too small.*at least {least} bytes"):
                refusal()


def test_one_rank_trains_with_any_buffer(comm, shared_path):
    config = Config.of(model="gat", halo_buffer="4096", **WIDE)
    graph = distribute(random_graph(60, 400, seed=1, width=40), comm, halo_buffer=4096)
    check_buffer(replace(shape_of(graph), ranks=1), config)
    configured_trainer(graph, config, shared_path).run()
