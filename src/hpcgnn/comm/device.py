"""The choice of the GPU that a rank computes on."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from hpcgnn.errors import InputError, counted

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

CHOICES = ("auto", "cpu", "cuda")


def pick_device(comm: Communicator, wanted: str = "auto") -> torch.device:
    """Return the device of this rank, of the same kind on all ranks. Collective.

    The ranks of one machine take its visible GPUs in turn (CUDA_VISIBLE_DEVICES selects them, and
    may differ between ranks); several ranks may share one.

    Args:
        wanted: `auto`: GPUs if every rank sees one, else the CPU; `cpu`; `cuda`.

    Raises:
        InputError: `cuda` was requested and some rank sees no GPU.
    """
    if wanted not in CHOICES:
        raise InputError(f"the device must be one of {', '.join(CHOICES)}", value=wanted)
    machine = platform.node()
    own = (machine, visible_gpus() if wanted != "cpu" else 0)
    ranks = comm.allgather(own, where="pick device")
    without = [rank for rank, (_, count) in enumerate(ranks) if count == 0]
    if wanted == "cuda" and without:
        reason = "this torch is built without CUDA"
        if torch.version.cuda is not None:
            reason = "no GPU is visible; see nvidia-smi and CUDA_VISIBLE_DEVICES"
        raise InputError(f"--device cuda: {reason}", rank=without[0])
    if wanted == "cpu" or without:
        return torch.device("cpu")
    place = sum(name == machine for name, _ in ranks[: comm.rank])
    device = torch.device("cuda", place % own[1])
    torch.cuda.set_device(device)
    return device


def visible_gpus() -> int:
    """Return the number of GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe(comm: Communicator, device: torch.device) -> str:
    """Return a short description of the hardware that the job computes on. Collective."""
    if device.type != "cuda":
        return f"CPU, {counted(torch.get_num_threads(), 'thread')} per rank"
    properties = torch.cuda.get_device_properties(device)
    everyone = comm.allgather((platform.node(), str(properties.uuid)), where="describe device")
    most = max(everyone.count(gpu) for gpu in everyone)
    shared = f", up to {most} ranks on one" if most > 1 else ", one per rank"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB{shared}"
