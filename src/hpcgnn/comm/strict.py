"""HPCGNN_STRICT=1: before each collective operation, all ranks compare where they are."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.comm.watchdog import LostRank
from hpcgnn.comm.whereabouts import stack_of

if TYPE_CHECKING:
    from mpi4py import MPI

_TEXT = 4000


def signature(operation: str, where: str, value: Any = None) -> str:
    """What must be the same on all ranks: the operation, its place, dtype and shape."""
    kind = f" of {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else ""
    return f"{operation}{kind} {where!r}"


def check(mpi: MPI.Comm, text: str, wait: Callable[[MPI.Request], None]) -> None:
    """Collective. Raises LostRank on all ranks, with stacks, unless `text` is the same on all."""
    size = mpi.Get_size()
    own = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.int64)
    hashes_P = np.empty(size, np.int64)
    wait(mpi.Iallgather(own, hashes_P))
    if (hashes_P == hashes_P[0]).all():
        return
    account = pickle.dumps((text[:400], stack_of()))[:_TEXT]
    accounts = np.zeros((size, _TEXT), np.uint8)
    padded = np.zeros(_TEXT, np.uint8)
    padded[: len(account)] = np.frombuffer(account, np.uint8)
    wait(mpi.Iallgather(padded, accounts))
    raise _astray([pickle.loads(row.tobytes()) for row in accounts])


def _astray(accounts: list[tuple[str, list[str]]]) -> LostRank:
    usual = Counter(text for text, _ in accounts).most_common(1)[0][0]
    astray = [rank for rank, (text, _) in enumerate(accounts) if text != usual]
    trace = []
    for rank in [next(r for r, (text, _) in enumerate(accounts) if text == usual), *astray[:4]]:
        text, stack = accounts[rank]
        trace += [f"rank {rank} is at {text}:", *(f"    {line}" for line in stack)]
    named = "; ".join(f"rank {rank} went astray to {accounts[rank][0]}" for rank in astray[:4])
    return LostRank(f"{named}, while the others are at {usual}", trace)
