"""`python -m tests.fake_device.main [FOLDER PID]`: a standing job on the fake device.

Its commands are those of hpcgnn, and names of test modules, whose `run` is called.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.fake_device import device_guard

device_guard.load()

import torch  # noqa: E402

from hpcgnn.bench import timing  # noqa: E402
from hpcgnn.comm.communicator import Communicator  # noqa: E402
from hpcgnn.comm.mirror import Mirror  # noqa: E402
from hpcgnn.comm.transport import shared  # noqa: E402
from hpcgnn.kernels.cuda import backend, dropout, gat, gatv2, launch, sums  # noqa: E402
from hpcgnn.sar import interior  # noqa: E402
from hpcgnn.train import layer_rehearsal, rehearsal  # noqa: E402
from tests.fake_device.ipc import FakeRuntime, host_tensor  # noqa: E402
from tests.fake_device.tensors import FakeDevice, FakeTensor  # noqa: E402
from tests.kernels.emulator import Emulator  # noqa: E402
from tests.standing_job import serve  # noqa: E402
from tests.train import several_commands  # noqa: E402

USED = 1 << 20  # bytes that the device reports as in use


class Event:
    """An event that is complete once it has been queried, or waited for."""

    def __init__(self) -> None:
        self._complete = False

    def record(self, stream: object = None) -> None:
        self._complete = False

    def query(self) -> bool:
        before, self._complete = self._complete, True
        return before

    def synchronize(self) -> None:
        FakeDevice.waits.append("Event.synchronize")
        self._complete = True


class Stream:
    cuda_stream = 0

    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass


def replace_torch_cuda() -> None:
    """Replace the functions of torch.cuda."""
    torch.cuda._lazy_init = lambda: None
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = _swap
    cudart = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda _: 0)
    properties = SimpleNamespace(total_memory=1 << 34, uuid="fake", name="fake GPU")
    for name, function in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "cudart": lambda: cudart,
        "set_device": lambda device: None,
        "synchronize": lambda *_: None,
        "current_stream": Stream,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "get_device_properties": lambda *_: properties,
        "max_memory_allocated": lambda *_: USED,
        "memory_allocated": lambda *_: USED,
        "is_bf16_supported": lambda *_, **__: True,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": lambda seed: None,
    }.items():
        setattr(torch.cuda, name, function)
    timing._COPIED["cuda"] = USED
    runtime = FakeRuntime()
    shared.cuda_runtime = lambda: runtime
    shared.CudaMemory.tensor = lambda _, *place: FakeTensor(host_tensor(*place))


def _swap(
    parameter: torch.Tensor, converted: torch.Tensor, swap: Callable = torch.utils.swap_tensors
) -> None:
    """Swap tensors but keep the parameter's attributes, as when only its data are replaced."""
    attributes = dict(vars(parameter))
    swap(parameter, converted)
    vars(parameter).update(attributes)


def emulate(emulator: Emulator) -> None:
    """Make kernels accept only fake tensors and run on the host."""

    def pointer(tensor: torch.Tensor | None) -> np.uintp:
        if tensor is None:
            return np.uintp(0)
        if not isinstance(tensor, FakeTensor):
            raise TypeError(f"a kernel was given host memory: {tuple(tensor.shape)} {tensor.dtype}")
        return np.uintp(tensor.data_ptr())

    def start(*given: Any) -> None:
        FakeDevice.launched.append(given[1])
        if FakeDevice.rehearsed is not None and given[1] not in FakeDevice.rehearsed:
            FakeDevice.late.add(given[1])
        emulator.start(*given[:-1], torch.device("cpu"))

    for module in (launch, backend, dropout, gat, gatv2, sums):
        if hasattr(module, "pointer"):
            module.pointer = pointer
    launch._start = start
    launch._cupy = lambda: None


def watch_rehearsals() -> None:
    """Note which kernels a rehearsal launches."""
    original = rehearsal.in_a_mirror

    @contextlib.contextmanager
    def in_a_mirror(comm: Communicator) -> Iterator[Mirror]:
        FakeDevice.rehearsed, before = None, len(FakeDevice.launched)
        with original(comm) as own:
            yield own
        FakeDevice.rehearsed = {name for name in FakeDevice.launched[before:] if "<" in name}
        print(f"{len(FakeDevice.rehearsed)} kernels rehearsed", file=sys.stderr)

    for module in (rehearsal, layer_rehearsal):
        module.in_a_mirror = in_a_mirror


def start() -> None:
    """Provide the device from now on; enter `FakeDevice` to use it."""
    replace_torch_cuda()
    interior.SLICE, interior.MOST = 1, 2  # even for the small graphs of a test
    emulate(Emulator(Path(os.environ[device_guard.VARIABLE]).parent))
    watch_rehearsals()


def run(command: list[str]) -> int:
    """Run a command of hpcgnn or a test module."""
    if command[0].startswith("tests."):
        status: int = importlib.import_module(command[0]).run()
        return status
    FakeDevice.rehearsed = None
    FakeDevice.late.clear()
    status = several_commands.run(command)
    if FakeDevice.late:
        print(f"loaded late: {', '.join(sorted(FakeDevice.late))}", file=sys.stderr)
    return status


if __name__ == "__main__":
    start()
    with FakeDevice():
        sys.exit(serve(run, *sys.argv[1:]))
