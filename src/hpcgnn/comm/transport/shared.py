"""GPU memory that other processes of a node can open and read: CUDA IPC."""

from __future__ import annotations

import gc
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor

_PIECE = 2 << 20  # CUDA cuts smaller memory from pieces that others would then see, too
_ALIGNMENT = 256  # of slots, in bytes
_DEFAULT = 4  # cudaMemcpyDefault: the addresses tell where the memory is
_PLACE = struct.Struct("<4q64s")


@dataclass(frozen=True)
class RowsPlace:
    """The location of a message in its sender's memory.

    Attributes:
        region: number of the sender's region.
        oldest: number of the oldest region that the sender still uses.
        handle: with which CUDA opens the region.
    """

    region: int
    begin: int
    num_bytes: int
    oldest: int
    handle: bytes

    SIZE = _PLACE.size

    def packed(self) -> bytes:
        return _PLACE.pack(self.region, self.begin, self.num_bytes, self.oldest, self.handle)

    @classmethod
    def unpack(cls, data: bytes) -> RowsPlace:
        return cls(*_PLACE.unpack(data))


@dataclass
class Region:
    """Memory of this process that other processes can open.

    Attributes:
        memory: uint8 tensor.
        readers: ranks that may have opened it.
    """

    number: int
    address: int
    memory: Tensor
    handle: bytes
    readers: set[int] = field(default_factory=set)


class Runtime(Protocol):
    """The functions needed of CUDA, as in `cupy.cuda.runtime`. Addresses are integers."""

    def setDevice(self, device: int) -> None: ...

    def malloc(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def ipcGetMemHandle(self, address: int) -> bytes: ...

    def ipcOpenMemHandle(self, handle: bytes) -> int: ...

    def ipcCloseMemHandle(self, address: int) -> None: ...

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None: ...


def cuda_runtime() -> Runtime:
    """Return CuPy's runtime; raise ImportError if CuPy is missing."""
    from cupy.cuda import runtime

    return cast(Runtime, runtime)


class CudaMemory:
    """Memory of one GPU allocated by CUDA itself: torch's can't be opened piece by piece."""

    def __init__(self, device: torch.device, runtime: Runtime | None = None) -> None:
        """Raise ImportError without CuPy."""
        self.device, self._runtime = device, runtime or cuda_runtime()

    def allocate(self, number: int, num_bytes: int) -> Region:
        """Allocate at least `num_bytes` bytes.

        Raises:
            torch.OutOfMemoryError: the GPU has too little memory left.
            RuntimeError: CUDA doesn't let other processes open memory here.
        """
        size = -(-max(num_bytes, 1) // _PIECE) * _PIECE
        runtime = self._on_device()
        try:
            address = runtime.malloc(size)
        except RuntimeError:
            torch.cuda.empty_cache()
            address = self._last_try(size)
        try:
            handle = runtime.ipcGetMemHandle(address)
        except RuntimeError:
            runtime.free(address)
            raise
        return Region(number, address, self.tensor(address, size), handle)

    def _last_try(self, size: int) -> int:
        try:
            return self._runtime.malloc(size)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(
                f"CUDA out of memory: {size / 2**20:.0f} MiB for messages that other processes on "
                "the node read"
            ) from None

    def tensor(self, address: int, num_bytes: int) -> Tensor:
        """Return a uint8 tensor over memory that the caller keeps alive."""
        return torch.as_tensor(_Array(address, num_bytes), device=self.device)

    def free(self, region: Region) -> None:
        """Free a region that no process has open."""
        self._on_device().free(region.address)

    def open(self, handle: bytes) -> int:
        """Return the address at which this process sees another one's region."""
        runtime = self._on_device()
        try:
            return runtime.ipcOpenMemHandle(handle)
        except RuntimeError:  # its address may be that of memory its owner has freed
            gc.collect()
            return runtime.ipcOpenMemHandle(handle)

    def close(self, address: int) -> None:
        self._on_device().ipcCloseMemHandle(address)

    def read(self, near: Tensor, address: int) -> None:
        """Queue a copy from `address` into `near` on torch's current stream."""
        size, stream = near.numel(), self._stream()
        self._on_device().memcpyAsync(near.data_ptr(), address, size, _DEFAULT, stream)

    def wait(self) -> None:
        """Wait until all copies have ended."""
        torch.cuda.synchronize(self.device)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def _on_device(self) -> Runtime:
        self._runtime.setDevice(self.device.index or 0)  # torch's choice isn't CuPy's
        return self._runtime


class _Array:
    """The interface by which torch makes a tensor over memory of a GPU."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }


class Exports:
    """The memory that this process sends from: one region, and earlier ones not yet closed by all.

    A region is freed once every rank that may have opened it has received a later message: each
    message says which regions are invalid, and is received before its reader's copies end.
    """

    def __init__(self, memory: CudaMemory) -> None:
        self._memory = memory
        self._current: Region | None = None
        self._void: list[Region] = []
        self._told: dict[int, int] = {}  # region of the last message to each rank
        self._next = self._end = 0
        self.reserved = 0

    def begin(self) -> None:
        """Free regions that are no longer in use; all messages sent so far have been received."""
        for region in self._void:
            region.readers = {p for p in region.readers if self._told[p] <= region.number}
            if not region.readers:
                self._memory.free(region)
        self._void = [region for region in self._void if region.readers]

    def reserve(self, sizes: Sequence[int]) -> None:
        """Reserve memory for buffers of these sizes; buffers taken before become invalid."""
        total = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        self._end, current = 0, self._current
        if current is not None and current.memory.numel() < total:
            self._void.append(current)
            self._current = None
            self.begin()
        if self._current is None:
            self._current = self._memory.allocate(self._next, total)
            self._next += 1
            self.reserved = sum(sizes)
        self.reserved = max(self.reserved, sum(sizes))

    def take(self, num_bytes: int) -> tuple[int, Tensor]:
        """Return the offset in its region and the memory of a buffer in the reserved memory."""
        if self._current is None:
            raise RuntimeError("nothing was reserved")
        begin = self._end
        self._end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if self._end > self._current.memory.numel():
            raise RuntimeError("more was used than reserved")
        return begin, self._current.memory[begin : begin + num_bytes]

    def place(self, begin: int, num_bytes: int, reader: int) -> RowsPlace:
        """Return the location of a message, which is sent to `reader`."""
        region = self._current
        if region is None:
            raise RuntimeError("nothing was reserved")
        region.readers.add(reader)
        self._told[reader] = region.number
        return RowsPlace(region.number, begin, num_bytes, region.number, region.handle)

    def close(self) -> None:
        """Free all regions, even if neighbours still have them open: none reads them any more."""
        regions = self._void if self._current is None else [*self._void, self._current]
        self._void, self._current = [], None
        for region in regions:
            self._memory.free(region)


class Imports:
    """Regions of other processes that this one has opened."""

    def __init__(self, memory: CudaMemory) -> None:
        self._memory = memory
        self._open: dict[int, dict[int, int]] = {}  # addresses by rank and region number

    def told(self, rank: int, place: RowsPlace) -> None:
        """Close the regions that `rank` declares invalid."""
        regions = self._open.setdefault(rank, {})
        for number in [n for n in regions if n < place.oldest]:
            self._memory.close(regions.pop(number))

    def address(self, rank: int, place: RowsPlace) -> int:
        """Return the address at which this process sees a message."""
        regions = self._open.setdefault(rank, {})
        if place.region not in regions:
            regions[place.region] = self._memory.open(place.handle)
        return regions[place.region] + place.begin

    def close(self) -> None:
        """Close all regions, after waiting for copies in progress."""
        self._memory.wait()
        for regions in self._open.values():
            while regions:
                self._memory.close(regions.popitem()[1])
