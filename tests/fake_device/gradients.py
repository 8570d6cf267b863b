"""Gradients summed over the ranks while backward runs, on the fake device, beside sums after it.

Losses and weights are the same to the bit, sums begin before the pass is over, and the host waits
for the GPU no more often.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hpcgnn.comm import world
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.open import place
from tests.fake_device.synchronisations import WaitsOfEpochs
from tests.fake_device.tensors import FakeDevice
from tests.graphs import distribute, random_graph

GRAPH = random_graph(40, 160)
WIDTH = 256  # a layer of this width exceeds a bucket
MODELS: dict[str, dict[str, Any]] = {
    "sage": {"model": "sage"},
    "rows of each rank, recomputed": {
        "model": "gat",
        "heads": 2,
        "embedding": 3,
        "recompute": True,
    },
}


def trained(comm: Communicator, kind: str, *, overlaps: bool) -> dict[str, Any]:
    """Return all that a run leaves, and the sums that had begun when backward was over."""
    device = pick_device(comm, "cuda")
    graph = distribute(GRAPH, comm, halo_buffer=65536)
    graph.ring.transport = choose_transport(comm, device)
    config = Config.of(
        hidden=WIDTH, layers=3, epochs=3, eval_every=100, device="cuda", **MODELS[kind]
    )
    counted, begun, losses = WaitsOfEpochs(), [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer = configured_trainer(
            place(graph, device, config),
            config,
            Path(comm.allgather(folder)[0]) / "run",
            show="nothing",
            callbacks=[counted, lambda trainer, record: losses.append(record["loss"])],
        )
        trainer.sums._overlaps &= overlaps
        finish = trainer.sums.finish

        def finished() -> bool:
            begun.append(len(comm.background()._begun) if trainer.sums._overlaps else 0)
            return finish()

        trainer.sums.finish = finished  # type: ignore[method-assign]
        FakeDevice.waits.clear()
        trainer.run()
        comm.barrier()
    state = [value.cpu() for value in trainer.learned.state_dict().values()]
    return {"losses": losses, "state": state, "begun": begun, "waits": counted.found[1]}


def compare(comm: Communicator) -> int:
    wrong = []
    for kind in MODELS:
        found, expected = (trained(comm, kind, overlaps=overlaps) for overlaps in (True, False))
        same = all(map(torch.equal, found["state"], expected["state"]))
        if found["losses"] != expected["losses"] or not same:
            wrong.append(f"{kind}: {found['losses']} {expected['losses']}, weights alike: {same}")
        if comm.size > 1 and min(found["begun"]) < 1:
            wrong.append(f"{kind}: sums begun before the end of backward: {found['begun']}")
        if len(found["waits"]) > len(expected["waits"]):
            wrong.append(f"{kind}: the host waits: {found['waits']}, {expected['waits']}")
    for line in wrong:
        print(f"rank {comm.rank}: {line}", file=sys.stderr)
    return int(bool(wrong))


def run() -> int:
    return world.run(compare)
