"""CUDA IPC without a GPU: host memory that processes share."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.comm.transport.shared import CudaMemory

HANDLE = 64


@dataclass
class Mapped:
    """A file in memory whose last page counts the processes that have it open."""

    descriptor: int
    pages: mmap.mmap
    opened: bool

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.pages))

    @contextmanager
    def count(self) -> Iterator[ctypes.c_int64]:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            yield ctypes.c_int64.from_buffer(self.pages, len(self.pages) - mmap.PAGESIZE)
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)


class FakeRuntime:
    """A stand-in for the calls that `CudaMemory` makes to CUDA.

    Attributes:
        copied: bytes that were copied from other processes.
        opened: how often other processes' memory was opened.
        early: how often memory was freed while another process had it open.
        taken: how often it allocated memory.
        full: whether no memory is left.
    """

    def __init__(self) -> None:
        self._mapped: dict[int, Mapped] = {}
        self.copied = self.opened = self.early = self.taken = 0
        self.full = False

    @property
    def held(self) -> int:
        """Return the number of allocations that are its own or open."""
        return len(self._mapped)

    def setDevice(self, device: int) -> None:
        assert device == 0

    def malloc(self, size: int) -> int:
        if self.full:
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory")
        self.taken += 1
        descriptor = os.memfd_create("fake GPU memory")
        os.ftruncate(descriptor, size + mmap.PAGESIZE)
        return self._map(descriptor, opened=False)

    def free(self, address: int) -> None:
        with self._mapped[address].count() as count:
            self.early += count.value > 0
        self._unmap(address, opened=False)

    def ipcGetMemHandle(self, address: int) -> bytes:
        return f"{os.getpid()}/fd/{self._mapped[address].descriptor}".encode().ljust(HANDLE, b" ")

    def ipcOpenMemHandle(self, handle: bytes) -> int:
        assert len(handle) == HANDLE
        owner, rest = handle.decode().strip().split("/", 1)
        if int(owner) == os.getpid():
            raise RuntimeError("cudaErrorDeviceUninitialized: invalid device context")
        try:
            descriptor = os.open(f"/proc/{owner}/{rest}", os.O_RDWR)
        except OSError as error:
            raise RuntimeError(f"cudaErrorInvalidResourceHandle: {error}") from None
        address = self._map(descriptor, opened=True)
        with self._mapped[address].count() as count:
            count.value += 1
        self.opened += 1
        return address

    def ipcCloseMemHandle(self, address: int) -> None:
        with self._mapped[address].count() as count:
            count.value -= 1
        self._unmap(address, opened=True)

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        assert kind == 4 and stream == 0
        held = next(
            held
            for begin, held in self._mapped.items()
            if begin <= source <= source + size <= begin + len(held.pages) - mmap.PAGESIZE
        )
        assert held.opened, "a rank reads its own memory"
        ctypes.memmove(to, source, size)
        self.copied += size

    def _map(self, descriptor: int, opened: bool) -> int:
        size = os.fstat(descriptor).st_size
        held = Mapped(descriptor, mmap.mmap(descriptor, size), opened)
        self._mapped[held.address] = held
        return held.address

    def _unmap(self, address: int, opened: bool) -> None:
        held = self._mapped.pop(address)
        assert held.opened is opened
        os.close(held.descriptor)  # tensors may still view it: they keep the pages


class HostMemory(CudaMemory):
    """Memory on a device that is the host."""

    def __init__(self, runtime: FakeRuntime) -> None:
        super().__init__(torch.device("cpu"), runtime)

    def tensor(self, address: int, num_bytes: int) -> Tensor:
        return host_tensor(address, num_bytes)

    def wait(self) -> None:
        pass

    def _stream(self) -> int:
        return 0


def host_tensor(address: int, num_bytes: int) -> Tensor:
    """Return a tensor over existing host memory."""
    return torch.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype=torch.uint8)
