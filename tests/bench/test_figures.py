"""jobs/figures.py draws what `bench` measured."""

import importlib.util
import json
from pathlib import Path

import pytest

from hpcgnn.bench.epoch import EpochReport, EpochSettings, standings
from hpcgnn.bench.floor import Floor
from hpcgnn.bench.job import Layout
from hpcgnn.bench.problem import GraphSize, ModelShape
from hpcgnn.bench.scale import ScaleReport, steps
from hpcgnn.bench.training import Training
from hpcgnn.errors import InputError

PROGRAM = Path(__file__).parents[2] / "jobs" / "figures.py"


@pytest.mark.slow
def test_every_figure_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    layouts = [Layout(1, 1), Layout(2, 1)]
    size, shape = GraphSize(10, 20, 1, 2), ModelShape("sage", 2, 8, 1)
    settings = EpochSettings(layouts, 1, 1)
    ours = Training([9.0, 1.0], [2.0, 1.0], 2e6, 1e6)
    rows = standings(
        {
            "hpcgnn, 1 rank x 1 thread": [ours],
            "DGL": [Training([9.0, 2.0], [2.0, 1.0], 3e6, 3e6, release="DGL 1.1.3")],
            "PyG CSR": [Training(problem="out of memory")],
        }
    )
    epoch = EpochReport(size, shape, settings, rows, Floor(0.5, 0.1, 1e9, 1e9), [])
    found = steps(layouts, [size] * 2, [[ours], [ours]], cores=2)
    scale = ScaleReport("strong", shape, settings, found, 2)
    files = []
    for name, report in (("epoch", epoch), ("scale", scale)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(report.as_json()))
    spec = importlib.util.spec_from_file_location("figures", PROGRAM)
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.main(tmp_path / "out", files) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["epochs.svg", "scaling.svg"]
    assert all(path.stat().st_size < 150_000 for path in (tmp_path / "out").iterdir())
    assert figures.main(tmp_path / "out", files) == 0
    mine = tmp_path / "out" / "scaling.svg"
    mine.write_text("<svg>mine</svg>")
    with pytest.raises(InputError, match="was not written by hpcgnn bench"):
        figures.main(tmp_path / "out", files)
    assert mine.read_text() == "<svg>mine</svg>"
    row = figures.peers_on(scale.as_json()["steps"][0]["graph"], str(shape), [epoch.as_json()])
    assert [figures.short(r["name"]) for r in row] == ["DGL"]
