from __future__ import annotations

import pytest

from tests.late import Late


@pytest.mark.parametrize("name", ["__test__", "__wrapped__", "__bases__", "_mock_name"])
def test_what_pytest_asks_while_it_collects_loads_no_library(name):
    assert not hasattr(Late("no_such_library"), name)


def test_a_name_loads_the_library():
    assert Late("fractions").Fraction(1, 2) == 0.5
