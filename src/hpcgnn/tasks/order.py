"""Numbers of all ranks in one order, of which each rank holds its share."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.communicator import Communicator

_SAMPLE = 64  # values of a rank that the cuts are chosen from


def tally(
    comm: Communicator, values_N: np.ndarray, counts_NK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each value once, with its counts added up over all ranks; collective.

    A rank sends a value once however often it has it, and the cuts between ranks are sampled, so
    that no rank holds much more than its share, ties or not.

    Args:
        values_N: float64 `[n]`, no NaN.
        counts_NK: int64 `[n, K]`.

    Returns:
        This rank's values, ascending and above those of all lower ranks; their counts.
    """
    values, counts = _once(values_N, counts_NK)
    sample = values[np.linspace(0, len(values) - 1, min(len(values), _SAMPLE)).astype(int)]
    samples = np.sort(np.concatenate(comm.allgather(sample, where="order of scores")))
    cuts = [samples[len(samples) * p // comm.size] for p in range(1, comm.size) if len(samples)]
    bounds = [0, *np.searchsorted(values, cuts, side="left"), len(values)]
    bounds += [len(values)] * (comm.size + 1 - len(bounds))
    shares = [slice(bounds[p], bounds[p + 1]) for p in range(comm.size)]
    values = np.concatenate(comm.alltoallv([values[s] for s in shares], where="scores"))
    counts = np.concatenate(comm.alltoallv([counts[s] for s in shares], where="counts of scores"))
    return _once(values, counts)


def _once(values_N: np.ndarray, counts_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, place = np.unique(values_N, return_inverse=True)
    counts = np.zeros((len(values), counts_NK.shape[1]), np.int64)
    np.add.at(counts, place, counts_NK)
    return values, counts


def from_lower_ranks(comm: Communicator, own_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of `own_K` (int64) over the ranks below this one, and over all; collective."""
    all_PK = np.stack(comm.allgather(own_K, where="counts of scores"))
    return all_PK[: comm.rank].sum(axis=0), all_PK.sum(axis=0)
