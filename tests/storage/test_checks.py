"""Fingerprints: the same for any cut, another for any change."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest

from hpcgnn.storage.checks import fingerprint, to_hex


def splitmix64(state: int) -> int:
    """Steele, Lea, Flood 2014, in plain integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    one = fingerprint("x", np.array([5]))
    two = fingerprint("x", np.array([5, 6]))
    seed = int.from_bytes(blake2b(b"x", digest_size=8).digest(), "little")
    assert one == splitmix64(splitmix64(seed) ^ 5)
    assert (two - one) % 2**64 == splitmix64(splitmix64((seed + 1) % 2**64) ^ 6)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("tail", [(), (3,)])
def test_sums_over_any_cut(dtype, tail):
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(20_000, *tail)) * 50).astype(dtype)
    whole = fingerprint("a", array)
    cuts = [0, 0, 1, 17, 16_384, 19_999, 20_000]
    parts = sum(fingerprint("a", array[a:b], a) for a, b in pairwise(cuts))
    assert to_hex(parts) == to_hex(whole)
    assert fingerprint("b", array) != whole
    for change in (0, 12_345, 19_999):
        other = array.copy()
        other.reshape(20_000, -1)[change, 0] += 1
        assert fingerprint("a", other) != whole
    other = array.copy()
    other[[3, 4]] = other[[4, 3]]
    assert fingerprint("a", other) != whole


def test_width_of_integers_does_not_matter():
    values = np.array([-1, 0, 5, 100])
    prints = {fingerprint("a", values.astype(dtype)) for dtype in ("int8", "int32", "int64")}
    assert len(prints) == 1
