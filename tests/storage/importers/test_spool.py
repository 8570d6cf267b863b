"""Lists of records in memory and in files."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.storage.importers.spool import Scratch

PAIR = np.dtype([("source", np.int32), ("destination", np.int64)])


def pairs(first: int, number: int) -> np.ndarray:
    out = np.empty(number, PAIR)
    out["source"] = out["destination"] = np.arange(first, first + number)
    return out


@pytest.mark.parametrize("expected", [None, 0, 19, 20, 21, 1 << 50])
@pytest.mark.parametrize("limit", [24, 12 * 12, 12 * 20, 1 << 20])
@pytest.mark.parametrize("take", [False, True])
def test_all_records_are_read_back_whatever_number_was_expected(tmp_path, expected, limit, take):
    with Scratch(tmp_path / "out.h5", limit) as scratch:
        records = scratch.records(PAIR, expected=expected)
        for first, number in ((0, 7), (7, 0), (7, 8), (15, 5)):
            records.append(pairs(first, number))
        assert records.count == 20 and records.nbytes == 240
        found = np.concatenate(list(records.chunks(36)))
        assert (found == pairs(0, 20)).all()
        assert ((records.take() if take else records.load()) == pairs(0, 20)).all()
        if take:
            assert list(records.chunks()) == [] and list(scratch.folder.iterdir()) == []
