"""A small parallel program that fails in the way named by its first argument."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm import world
from hpcgnn.errors import InputError
from hpcgnn.storage.write.atomic import claim


def one_raises(comm: Any) -> None:
    if comm.rank == 1:
        raise InputError("label 99 is outside 0..9", file="graph.h5", dataset="nodes/labels")


def one_surprised(comm: Any) -> None:
    if comm.rank == 1:
        raise ZeroDivisionError("cake\nfor nobody")


def all_raise(comm: Any) -> None:
    raise InputError("no such file", file="graph.h5")


def all_agree(comm: Any) -> None:
    error = InputError("no such file", file="graph.h5") if comm.rank > 0 else None
    comm.agree(error, "opening")


def one_killed(comm: Any) -> None:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def one_stopped(comm: Any) -> None:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def one_stopped_at_start(comm: Any) -> None:
    raise AssertionError("the start can't have succeeded")


def one_stopped_in_library(comm: Any) -> None:
    with comm.blocking_call("library"):
        one_stopped(comm)
        comm.mpi.Barrier()


def one_elsewhere(comm: Any) -> None:
    with comm.at("evaluation"):
        if comm.rank == 1:
            time.sleep(0.7)  # the other rank's timeout expires first
            comm.wait_any([comm.mpi.Irecv(np.empty(1), 0, 5)], "a message nobody sends")


def one_sleeps(comm: Any) -> None:
    if comm.rank == 1:
        time.sleep(60)


def one_works(comm: Any) -> None:
    end = time.monotonic() + 5
    while comm.rank == 1 and time.monotonic() < end:
        pass


def one_leaves(comm: Any) -> None:
    if comm.rank == 1:
        sys.exit(7)


def one_returns(comm: Any) -> None:
    if comm.rank != 1:
        comm.barrier("left behind")


def one_in_another_operation(comm: Any) -> None:
    if comm.rank == 1:
        comm.broadcast("metrics", where="evaluation")
    else:
        comm.allreduce(np.ones(3, np.float32), where="gradients")


def wrong_shape(comm: Any) -> None:
    comm.allreduce(np.ones(3 + (comm.rank == 1)), where="gradients")


def wrong_operation(comm: Any) -> None:
    comm.allreduce(-1.5) if comm.rank == 1 else comm.allgather("name", where="names")
    comm.barrier()


def out_of_memory(comm: Any) -> None:
    if comm.rank == 1:
        np.empty(1 << 60, np.uint8)


def out_of_memory_in_torch(comm: Any) -> None:
    import torch

    if comm.rank == 1:
        torch.empty(1 << 60, dtype=torch.uint8)


def interrupted(comm: Any) -> None:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def interrupted_twice(comm: Any) -> None:
    """As by Ctrl-C: from the terminal, and again from mpiexec while the rank ends the job."""
    if comm.rank == 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    interrupted(comm)


def terminated_while_waiting(comm: Any) -> None:
    if comm.rank == 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            comm.barrier("waiting")
        finally:
            print("cleaned up", flush=True)
    else:
        time.sleep(20)


def one_terminated_while_others_write(comm: Any) -> None:
    if comm.rank == 1:
        comm.mpi.recv(source=0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    with claim(Path(os.environ["TARGET"]).with_name(f"rank{comm.rank}")):
        comm.mpi.send(None, 1) if comm.rank == 0 else None
        time.sleep(20)


def one_raises_while_another_is_in_a_library(comm: Any) -> None:
    if comm.rank == 1:
        comm.mpi.recv(source=0)
        one_raises(comm)
    with comm.blocking_call("library"):
        if comm.rank == 0:
            comm.mpi.send(None, 1)
        comm.mpi.Recv(np.empty(1), 1, 5)


def terminated_in_library(comm: Any) -> None:
    with comm.blocking_call("library"):
        if comm.rank == 1:
            pid, number = os.getpid(), int(signal.SIGTERM)
            code = f"import os, time; time.sleep(0.5); os.kill({pid}, {number})"
            subprocess.Popen([sys.executable, "-c", code])
            comm.mpi.Recv(np.empty(1), 0, 5)


def prints_into_closed_pipe(comm: Any) -> None:
    for _ in range(10_000):
        print("x" * 100)


def shows_segments(comm: Any) -> None:
    comm.allreduce(np.ones(100_000))
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}
    sys.stdout.write(f"segments {[path for path in mapped if Path(path).exists()]}\n")


def main(comm: Any) -> int:
    globals()[sys.argv[1]](comm)
    comm.barrier("after the fault")
    return 0


if __name__ == "__main__":
    sys.stderr.write(f"pid {os.getpid()}\n")
    sys.stderr.flush()
    if sys.argv[1] == "one_stopped_at_start":
        from hpcgnn.comm.mpi_library import MPI

        one_stopped(MPI.COMM_WORLD)
    sys.exit(world.run(main))
