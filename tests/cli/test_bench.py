"""The verb bench prints every implementation it finds, ours at ratio 1."""

import json


def test_kernels(mpirun):
    sizes = ["--nodes=300", "--edges=2000", "--width=8", "--heads=2", "--channels=4"]
    sizes += ["--repeat=1"]
    done = mpirun(0, "bench", "kernels", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    ours = [row for row in rows if row["implementation"] == "hpcgnn"]
    assert len(ours) == 7
    assert all(row["ratio"] == 1 and row["seconds"] > 0 for row in ours)
    kernels = [row for row in ours if row["operation"].startswith("kernel ")]
    assert [row["num_bytes"] for row in kernels] == [
        2000 * (8 * 4 + 4) + 300 * 8 * 4 * 2,
        2000 * (8 * 4 + 2 * 4 + 4) + 300 * 8 * 4 * 2,
        2000 * (8 * 4 + 4 * 2 * 4 + 4) + 300 * 8 * 4 * 3,
    ]
    assert all(row["share"] > 0 for row in kernels)
    assert {"torch.sparse", "PyG GATConv"} <= {row["implementation"] for row in rows}


def test_sizes_are_checked(mpirun):
    done = mpirun(0, "bench", "kernels", "--nodes", "0")
    assert done.returncode == 2
    assert done.stderr.strip() == "hpcgnn: error: --nodes must be at least 1 (found 0)"
