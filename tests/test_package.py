"""What `import hpcgnn` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hpcgnn


def test_names_are_found_at_their_first_use():
    from hpcgnn.nn.sage import SAGEConv
    from hpcgnn.storage.read.load import load_partition

    assert hpcgnn.load_partition is load_partition
    assert hpcgnn.nn.SAGEConv is SAGEConv
    assert {"load_partition", "nn", "__version__"} <= set(dir(hpcgnn))
    with pytest.raises(AttributeError, match="no attribute 'soup'"):
        hpcgnn.soup  # noqa: B018


def test_import_loads_neither_torch_nor_mpi():
    program = "import sys, hpcgnn; print({*sys.modules} & {'torch', 'mpi4py', 'h5py'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
