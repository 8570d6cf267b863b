"""Activations that are recomputed in backward, or kept in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hpcgnn.models.build import build_model
from hpcgnn.models.segments import layers_together
from hpcgnn.models.settings import ModelSettings
from hpcgnn.train.calls import ModelCall
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi

# Settings, the graph's arguments, and the mode.
CASES: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "sage": ({"kind": "sage", "layers": 6}, {}, "sar"),
    "sage, layers of all": ({"kind": "sage", "jumping": "cat", "head": "linear"}, {}, "sar"),
    "sage, largest": ({"kind": "sage", "aggr": "max"}, {}, "oneshot"),
    "gcn with batch norm": ({"kind": "gcn", "norm": "batch", "residual": True}, {}, "sar"),
    "gat": ({"kind": "gat", "layers": 4, "attention_dropout": 0.2}, {}, "sar"),
    "gat that keeps": ({"kind": "gat", "attention_dropout": 0.2}, {"edge_width": 2}, "sa"),
    "gat, elu": ({"kind": "gat", "block": "res+", "norm": "graph", "activation": "elu"}, {}, "sar"),
    "gatv2": ({"kind": "gatv2", "norm": "layer"}, {"edge_width": 2}, "sar"),
    "rgcn": ({"kind": "rgcn", "bases": 2}, {"num_relations": 3}, "sar"),
    "rgat": ({"kind": "rgat"}, {"num_relations": 3}, "sa"),
    "gine": ({"kind": "gine", "aggr": "max"}, {"edge_width": 3}, "sar"),
    "pna": ({"kind": "pna"}, {"edge_width": 2}, "sar"),
    "deeper": ({"kind": "deeper", "norm": "batch"}, {"edge_width": 2}, "sar"),
    "transformer": ({"kind": "transformer"}, {}, "sar"),
    "appnp": ({"kind": "appnp", "power": 2}, {}, "sar"),
}
Found = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]


def trained(comm, name: str, *, recompute: bool = False, keep_in: str = "fp32") -> Found:
    """Return the loss of one pass, its concatenated gradients, and the model's buffers."""
    settings, arguments, mode = CASES[name]
    graph = distribute(random_graph(60, 240, 3, width=9, **arguments), comm, mode=mode)  # type: ignore[arg-type]
    model_settings = ModelSettings(**({"hidden": 16, "heads": 2, "dropout": 0.3} | settings))  # type: ignore[arg-type]
    execution = replace(
        graph.execution, seed=5, together=layers_together(model_settings) if recompute else 0
    )
    graph = replace(graph, execution=execution)
    graph.set_epoch(7)
    model = build_model(model_settings, graph, 3, seed=1)
    loss = ModelCall(model, graph, "fp32", keep_in).training_output().square().sum()
    graph.set_epoch(8)  # recomputation uses the masks of its own epoch
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(grads), [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("name", CASES)
def test_computed_again_or_kept_in_bfloat16(comm, name):
    """To the bit; or the loss is the same, and gradients differ by rounding of what makes them."""
    loss, grads, buffers = trained(comm, name)
    again_loss, again_grads, again_buffers = trained(comm, name, recompute=True)
    assert torch.equal(loss, again_loss) and torch.equal(grads, again_grads)
    assert all(map(torch.equal, buffers, again_buffers))

    for recompute in (False, True):
        kept_loss, kept_grads, _ = trained(comm, name, recompute=recompute, keep_in="bf16")
        assert torch.equal(loss, kept_loss)
        distance = comm.allreduce(float((kept_grads - grads).square().sum())) ** 0.5
        length = comm.allreduce(float(grads.square().sum())) ** 0.5
        assert distance < 0.04 * length


class Arrays(TorchDispatchMode):
    """Arrays that operations in this context make, with their bytes; no views of `known`."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, torch.Tensor) else []:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return result

    def alive(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


@pytest.mark.parametrize(
    ("kind", "layers", "settings", "arrays"),
    [
        # Hidden float32 arrays that are kept for backward, including the output layer's.
        ("sage", 5, {}, 4.0),
        ("sage", 5, {"recompute": True}, 2.0),  # in pairs of layers
        ("sage", 5, {"keep_in": "bf16"}, 2.0),
        ("sage", 5, {"recompute": True, "keep_in": "bf16"}, 1.0),
        ("gat", 3, {}, 2.0),
        ("gat", 3, {"keep_in": "bf16"}, 1.0),
        ("gatv2", 3, {"norm": "layer"}, 6.0),
        ("gatv2", 3, {"norm": "layer", "recompute": True}, 1.0),
    ],
)
def test_arrays_kept_for_backward(comm, kind, layers, settings, arrays):
    if comm.size > 1:
        pytest.skip("messages take memory too")
    width = 64
    graph = distribute(random_graph(3000, 3000, 3, width=9), comm)
    settings = dict(settings)
    recompute, keep_in = settings.pop("recompute", False), settings.pop("keep_in", "fp32")
    model_settings = ModelSettings(
        kind=kind, layers=layers, hidden=width, heads=1, head="conv", dropout=0.0, **settings
    )
    together = layers_together(model_settings) if recompute else 0
    graph = replace(graph, execution=replace(graph.execution, together=together))
    model = build_model(model_settings, graph, 3, seed=1)
    call = ModelCall(model, graph, "fp32", keep_in)
    call.training_output()  # arrays that are made at first use
    graph.execution.newest = None
    known = (graph.features, graph.node_ids, *model.parameters())
    with Arrays(*known) as found:
        output = call.training_output()
    graph.execution.newest = graph.execution.wide = None
    array = 4 * graph.num_local_nodes * width
    assert output.requires_grad
    assert abs(found.alive() - arrays * array) < 0.6 * array
