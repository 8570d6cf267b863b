"""Sums over the ranks of the gradients of parameters that every rank has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator, TensorSums
from hpcgnn.errors import InputError, NumericalError, warn
from hpcgnn.graph.arguments import check_module
from hpcgnn.nn.linear import is_sharded
from hpcgnn.nn.norm import SYNCHRONISED, unsynchronised


def sum_gradients(model: torch.nn.Module, comm: Any = None) -> None:
    """Add up the gradients over the ranks, between `loss.backward()` and `optimizer.step()`.

    Collective, with one message for all gradients. Parameters that need no gradient, and those of
    which each rank has its own rows (`nn.Embedding`), are left alone. A parameter that the loss
    does not use on a rank contributes 0 there; if no rank uses it, its gradient is 0.

    The first call for a model compares its weights over the ranks: they differ if the seed was
    forgotten, and gradients of different models would be added up. It also warns of torch's batch
    normalisation, whose statistics cover the nodes of one rank only.

    Args:
        model: the same on all ranks.
        comm: a `Communicator`, an mpi4py communicator, or None for all ranks of the job.

    Raises:
        InputError: the ranks have different weights; raised on all ranks, naming the parameter. Or
            a gradient is sparse.
        NumericalError: a gradient is not finite; raised on all ranks, naming the parameter.
    """
    check_module(model, "sum_gradients")
    comm = comm if isinstance(comm, Communicator) else Communicator.of(comm)
    if comm.size > 1 and model not in comm.compared:
        require_same_weights(model, comm)
        comm.compared.add(model)
        alone = unsynchronised(model)
        if alone and comm.rank == 0:
            warn(
                f"hpcgnn: warning: the model's {', '.join(alone)} normalises over the nodes of one "
                f"rank only: {SYNCHRONISED}"
            )
    if add_up(list(model.parameters()), comm):
        return
    found = first_not_finite(model.named_parameters(), comm)
    where = "the sum over the ranks" if found is None else f"{found[0]} on rank {found[1]}"
    raise NumericalError(f"the gradient of {where} is not finite: lower the learning rate")


def require_same_weights(model: torch.nn.Module, comm: Communicator) -> None:
    """Raise InputError on all ranks if a parameter's values differ between them; collective.

    Sums are compared to a millionth of the sum of absolute values, because different kinds of
    processors may draw numbers that differ in the last digit.
    """
    shared = [(name, p.detach()) for name, p in model.named_parameters() if not is_sharded(p)]
    # Two numbers per parameter in one tensor, so that the host waits for a GPU once.
    sums = [part.sum(dtype=torch.float64) for _, p in shared for part in (p, p.abs())]
    totals = torch.stack(sums).cpu().view(-1, 2).tolist() if sums else []
    facts = {
        name: (tuple(p.shape), *total) for (name, p), total in zip(shared, totals, strict=True)
    }
    facts_P = comm.allgather(facts, where="compare weights")
    for rank, others in enumerate(facts_P):
        for name in dict.fromkeys((*facts_P[0], *others)):
            if not _alike(facts_P[0].get(name), others.get(name)):
                raise InputError(
                    f"the ranks have different weights: {name} on rank {rank} is not that of rank "
                    "0; call torch.manual_seed with the same number on all ranks before the model "
                    "is made (hpcgnn.Trainer gives all ranks those of rank 0)"
                )


def _alike(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    if one is None or other is None or one[0] != other[0]:
        return False
    pairs = zip(one[1:], other[1:], strict=True)
    return all(abs(a - b) <= 1e-6 * one[-1] or not math.isfinite(a + b) for a, b in pairs)


def add_up(
    parameters: Sequence[Tensor], comm: Communicator, on_device: TensorSums | None = None
) -> bool:
    """Sum as `sum_gradients` does; return False, with none changed, if one is not finite.

    Sums are computed by MPI on the host, or by `on_device` where the gradients are.
    """
    learned = [p for p in parameters if p.requires_grad]
    shared = [p for p in learned if not is_sharded(p)]
    gradients = [gradient(parameter) for parameter in shared]
    # One more number: NaN, on all ranks, if a gradient that stays on its rank is not finite.
    flag = torch.zeros(1, device=parameters[0].device if parameters else None)
    for parameter in learned:
        if is_sharded(parameter) and parameter.grad is not None:
            flag = flag + (parameter.grad * 0).sum()
    own = torch.cat([*(rows.reshape(-1) for rows in gradients), flag])
    # Checked where the sum arrives, so that the host waits for a GPU once.
    if comm.size == 1:
        flat = own
    elif on_device is not None:
        flat = on_device.add_up(own, "gradients")
    else:
        flat = comm.allreduce(own.cpu(), where="gradients")
    if not bool(torch.isfinite(flat).all()):
        return False
    flat = copied_to(flat, own.device)
    offset = 0
    for parameter in shared:
        size = parameter.numel()
        parameter.grad = flat[offset : offset + size].view_as(parameter).to(parameter.dtype)
        offset += size
    return True


def gradient(parameter: Tensor) -> Tensor:
    """Return the parameter's gradient, set to 0 if the loss does not use the parameter.

    Raises:
        InputError: it is sparse.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if parameter.grad.layout != torch.strided:
        raise InputError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is sparse, and only "
            "dense ones are added up: torch.nn.Embedding makes these with sparse=False"
        )
    return parameter.grad


def copied_to(flat: Tensor, device: torch.device) -> Tensor:
    """Return a copy on `device`; the host does not wait for it."""
    if flat.device == device:
        return flat
    pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=device.type == "cuda")
    return pinned.copy_(flat).to(device, non_blocking=True)


def first_not_finite(
    parameters: Iterable[tuple[str, Tensor]], comm: Communicator
) -> tuple[str, int] | None:
    """Return the parameter whose gradient is not finite on the lowest rank, and that rank.

    Of several parameters it is the last one, which backward reaches first. None if only the sum
    is not finite. Collective.
    """
    own = [
        name
        for name, parameter in parameters
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    found = comm.allgather(own[-1] if own else "", where="not finite")
    return next(((name, rank) for rank, name in enumerate(found) if name), None)
