"""A description of the GPU that a measurement ran on."""

from __future__ import annotations

import subprocess

import torch

from hpcgnn.system import find_program

_ASKED = ("clocks.sm", "clocks.mem", "power.limit", "driver_version")


def describe(device: torch.device, copied: float) -> str:
    """Return name, memory, current clocks, driver and copy speed in bytes/s, in one line."""
    found = torch.cuda.get_device_properties(device)
    parts = [found.name, f"{found.total_memory / 2**30:.0f} GiB", *_clocks(device)]
    return ", ".join([*parts, f"copies {copied / 1e9:.0f} GB/s (read + written)"])


def _clocks(device: torch.device) -> list[str]:
    """Return the clocks, power limit and driver that nvidia-smi reports; empty without it."""
    program = find_program("nvidia-smi")
    if program is None:
        return []
    index = device.index if device.index is not None else torch.cuda.current_device()
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    command = [program, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    command += ["--id", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(_ASKED):
        return []
    core, memory, power, driver = values
    return [f"clocks {core} and {memory}", f"at most {power}", f"driver {driver}"]
