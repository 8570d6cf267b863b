"""Fingerprints: independent of the slabs, different after any change."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage import fingerprint as module
from hpcgnn.storage.fingerprint import fingerprint, mix64, to_hex


def splitmix64(state: int) -> int:
    """SplitMix64 (Steele, Lea, Flood 2014) in plain integers."""
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
def test_fingerprints_add_up_over_any_cut(dtype, tail):
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


def test_fingerprints_do_not_depend_on_integer_width():
    values = np.array([-1, 0, 5, 100])
    prints = {fingerprint("a", values.astype(dtype)) for dtype in ("int8", "int32", "int64")}
    assert len(prints) == 1


def seed_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


KINDS = [
    "bool",
    "i1",
    "u1",
    "<i2",
    ">i2",
    "u2",
    "<i4",
    ">i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "<f4",
    ">f4",
    "f8",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8, 3), (3, 0)])
def test_fingerprints_of_every_type_match_plain_integers(kind, shape):
    rng = np.random.default_rng(1)
    dtype = np.dtype(kind)
    array = np.frombuffer(rng.bytes(64 * 8), dtype)[: int(np.prod(shape))].reshape(shape)
    if kind == "bool":
        array = rng.random(shape) < 0.5
    native = array.astype(dtype.newbyteorder("="))
    bits = native.view(f"u{dtype.itemsize}") if dtype.kind == "f" else native
    wanted = sum(
        splitmix64(splitmix64((seed_of("é") + first) % 2**64) ^ int(value) % 2**64)
        for first, value in enumerate(bits.reshape(-1), 5 * int(np.prod(shape[1:])))
    )
    assert fingerprint("é", array, 5) == wanted % 2**64
    assert fingerprint("é", np.repeat(array, 2, axis=0)[::2], 5) == wanted % 2**64


def test_fingerprints_of_bytes_equal_those_of_uint8():
    assert fingerprint("a", np.array([b"ab", b"c"])) == fingerprint(
        "a", np.array([[97, 98], [99, 0]], np.uint8)
    )


def test_an_array_need_not_be_aligned():
    values = np.arange(9, dtype=np.int64)
    odd = np.frombuffer(b"x" + values.tobytes(), np.int64, offset=1)
    assert not odd.flags.aligned
    assert fingerprint("a", odd) == fingerprint("a", values)


def test_mixing_is_splitmix64():
    values = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    wanted = [splitmix64(int(value)) for value in values]
    mix64(values)
    assert values.tolist() == wanted
    for wrong in (np.arange(4), np.zeros((4, 4), np.uint64)[:, 1]):
        with pytest.raises(TypeError, match="uint64"):
            mix64(wrong)


def test_a_library_that_was_not_built_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "libhpcgnn_storage.so")
    module._library.cache_clear()
    with pytest.raises(InputError, match=r"pip install \."):
        fingerprint("a", np.zeros(1))
