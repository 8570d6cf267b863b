"""Splits of the edges drawn by their nodes."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.assemble import LinkSplit

COUNTS, SOURCES = np.full(200, 50), np.random.default_rng(0).integers(0, 200, 10_000)


@pytest.mark.parametrize("text", ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "-0.1,0.5,0.1", "nan,0,0"])
def test_impossible_shares_are_refused(text):
    with pytest.raises(InputError, match="--link-split takes three shares"):
        LinkSplit.of(text, 0)


def test_shares_are_met_and_both_directions_agree():
    split = LinkSplit.of("0.5,0.25,0.125", 3)
    codes = split.codes(COUNTS, SOURCES, 0)
    shares = np.bincount(codes, minlength=4) / len(codes)
    np.testing.assert_allclose(shares, [0.125, 0.5, 0.25, 0.125], atol=0.02)
    targets = np.repeat(np.arange(200), COUNTS)
    assert (codes[targets == SOURCES] == 0).all()
    # The same edges reversed, one list at a time.
    order = np.argsort(SOURCES, kind="stable")
    counts = np.bincount(SOURCES, minlength=200)
    ends = np.cumsum(counts)
    lists = np.split(targets[order], ends[:-1])
    turned = [split.codes(counts[k : k + 1], lists[k], k) for k in range(200)]
    assert np.array_equal(np.concatenate(turned), codes[order])
    assert (LinkSplit.of("0.5,0.25,0.125", 4).codes(COUNTS, SOURCES, 0) != codes).any()


def test_shares_that_add_up_to_one_use_every_edge():
    codes = LinkSplit.of("0.8,0.1,0.1", 0).codes(COUNTS, SOURCES, 0)
    loops = np.repeat(np.arange(200), COUNTS) == SOURCES
    assert (codes[~loops] > 0).all()
