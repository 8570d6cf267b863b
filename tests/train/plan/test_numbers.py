"""Plans for graphs given only by numbers, and estimated seconds on a machine."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from hpcgnn.cli import main
from hpcgnn.errors import InputError
from hpcgnn.train.config import Config
from hpcgnn.train.plan.coefficients import KEPT
from hpcgnn.train.plan.estimate import Shape, bytes_per_epoch, estimate
from hpcgnn.train.plan.halo import KEPT as HALO_KEPT
from hpcgnn.train.plan.halo import modelled, untouched
from hpcgnn.train.plan.machine import Curve, folder, known, read_machine
from hpcgnn.train.plan.pruning import shares
from hpcgnn.train.plan.seconds import seconds
from hpcgnn.train.plan.shapes import largest_of
from hpcgnn.train.plan.work import evaluation_pass

PAPERS = ["--nodes", "111059956", "--edges", "3.2e9", "--features", "128", "--classes", "172"]
WHOLE = Shape(1, 111_059_956, 3_200_000_000, 128, 172, halo=0, volume=0)


def planned(capsys, *options: str) -> dict:
    assert main.main(["plan", *PAPERS, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_estimates_for_papers100m_over_rank_counts(capsys):
    found = planned(
        capsys, "--labelled", "0.014", "--ranks", "16,32,64,128", "--machine", "perlmutter-gpu"
    )
    assert "not measured" in found["machine"]["source"]
    assert [plan["ranks"] for plan in found["plans"]] == [16, 32, 64, 128]
    assert 16 < found["fewest_ranks"] <= 32 and not found["plans"][0]["fits"]
    peaks = [plan["peak_bytes_per_rank"] for plan in found["plans"]]
    for plan in found["plans"]:
        assert plan["peak_bytes_per_rank"] == sum(plan["memory_bytes"].values())
        assert plan["epoch_seconds"] == pytest.approx(sum(plan["seconds"].values()))
        assert min(plan["seconds"].values()) >= 0 and plan["sent_bytes"] > 0
    assert all(1.8 < more / fewer < 2.1 for more, fewer in itertools.pairwise(peaks))


@pytest.mark.parametrize(("model", "published"), [("sage", (95, 47, 25)), ("gat", (67, 35, 19))])
def test_less_memory_than_sar_published(model, published):
    """SAR (Mostafa 2022), papers100M, GB per machine of 32, 64 and 128; without pruning here."""
    config = Config.of(model=model, hidden=512 if model == "gat" else 256, heads=4)
    for ranks, theirs in zip((32, 64, 128), published, strict=True):
        assert estimate(largest_of(WHOLE, ranks), config).peak < theirs * 1e9


def test_graphs_given_as_numbers(capsys):
    for wrong, words in (
        (["--edges", "many"], "--edges must be an integer"),
        (["--ranks", "2,x"], "numbers with commas"),
        (["--ranks", "2,²"], "numbers with commas"),
        (["--ranks", "--2"], "a value must follow it"),
        (["--ranks=4,--2"], "numbers with commas"),
        (["--labelled", "1.5"], "--labelled must be in"),
        (["--halo-fraction", "-1"], "--halo-fraction must be"),
        (["--machine", "nowhere"], "--machine must be one of"),
        (["--model", "rgcn"], "needs relations"),
    ):
        assert main.main(["plan", *PAPERS, *wrong]) == 2
        assert words in capsys.readouterr().err
    assert main.main(["plan", "--nodes", "5"]) == 2
    assert "--nodes and --edges" in capsys.readouterr().err
    half = planned(capsys, "--ranks", "4", "--halo-fraction", "0.5")["plans"][0]
    assert half["halo_from"] == "fraction"
    assert half["shape"]["volume"] == pytest.approx(0.5 * 111_059_956, rel=1e-6)


def test_estimated_boundary_of_random_parts():
    """The estimate without community structure equals random parts of graphs with its degrees."""
    rng = np.random.default_rng(0)
    nodes, degree, ranks = 20_000, 12.0, 8
    counts = rng.poisson(rng.gamma(0.8, degree / 0.8, nodes))
    ends = rng.integers(0, ranks, counts.sum())
    node = np.repeat(np.arange(nodes), counts)
    own = rng.integers(0, ranks, nodes)
    met = len(np.unique((node * ranks + ends)[ends != own[node]]))
    volume = modelled(nodes, degree, ranks, kept=1.0).volume
    assert volume == pytest.approx(met, rel=0.05)
    assert modelled(nodes, degree, 1).volume == 0
    assert modelled(nodes, degree, ranks).volume == pytest.approx(HALO_KEPT * volume, rel=1e-3)
    assert untouched(degree, 1.0) == 0 and untouched(0.0, 0.5) == 1


def test_pruning_keeps_what_targets_reach():
    few = shares(Config.of(model="gat", layers=3), 10.0, 0.01)
    assert few[2].written == few[2].edges == 0.01 < few[2].read < 0.12
    assert few[1].written == few[2].read < few[1].edges and not few[0].pruned
    for config in (Config.of(prune=False), Config.of(norm="batch"), Config.of(model="sgc")):
        assert not any(share.pruned for share in shares(config, 10.0, 0.01))
    sage = Config.of(model="sage")
    for what in (lambda s: estimate(s, sage).peak, lambda s: bytes_per_epoch(s, sage)):
        assert what(replace(largest_of(WHOLE, 8), labelled=0.001)) < what(largest_of(WHOLE, 8))


@pytest.mark.parametrize("name", known())
def test_every_machine_estimates_seconds_for_every_model(name):
    machine = read_machine(name)
    for kind in KEPT:
        config = Config.of(model=kind, hidden=64)
        shapes = [largest_of(replace(WHOLE, relations=3), ranks) for ranks in (1, 64, 256)]
        found = [seconds(shape, config, machine).epoch for shape in shapes]
        assert found[0] > found[1] > found[2] > 0
        wide = seconds(shapes[1], config.changed(hidden=256), machine).epoch
        assert kind in ("appnp", "sgc", "dagnn") or wide > found[1]


def test_machine_files_are_checked(tmp_path):
    text = (tmp_path / "x.toml", "name = 1")
    text[0].write_text(text[1])
    with pytest.raises(InputError, match="products must be a table"):
        read_machine(str(text[0]))
    with pytest.raises(InputError, match="can't be read"):
        read_machine(str(tmp_path / "none.toml"))
    good = (folder() / "perlmutter-cpu.toml").read_text()
    for old, new, message in (
        ("ranks_per_node = ", f"ranks_per_node = 0x{'f' * 5000} #", "in 1 to"),
        ("\nrows = ", f"\nrows = 1{'0' * 400} #", "rows must be a number above 0"),
        ("\nname = ", f"\nname = 0x{'f' * 5000} #", "name must be text"),
    ):
        text[0].write_text(good.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            read_machine(str(text[0]))
    assert Curve((1, 100), (1, 10)).at(10) == pytest.approx(10**0.5)


def test_each_head_takes_as_long_alone_as_beside_others():
    machine, shape = read_machine("perlmutter-cpu"), largest_of(WHOLE, 64)
    for heads in (1, 2, 4, 8):
        config = Config.of(model="gat", hidden=64, heads=heads, layers=2)
        alone, together = (
            evaluation_pass(shape, config.changed(mode=mode)).gathers for mode in ("sar", "sa")
        )
        found = [
            sum(machine.gathers[k].seconds(w, e, rows, shape.nodes) for k, w, e, rows in work)
            for work in (alone, together)
        ]
        assert (len(alone) > len(together)) == (heads > 1)
        assert found[0] == pytest.approx(found[1])


def test_fixed_costs_of_layers_do_not_shrink_with_the_graph(tmp_path):
    text = (folder() / "perlmutter-cpu.toml").read_text()
    file = tmp_path / "here.toml"
    file.write_text(text.replace("rows = 1.0\n", "rows = 1.0\nsteps = 3.0\n"))
    slow, quick = read_machine(str(file)), read_machine("perlmutter-cpu")
    assert quick.crowd["steps"] == 1 and slow.crowd["steps"] == 3
    tiny = replace(WHOLE, nodes=800, edges=8000)
    for kind in ("gcn", "gat"):
        steps = [
            seconds(largest_of(tiny, ranks), Config.of(model=kind), machine).steps
            for ranks, machine in ((1, quick), (8, quick), (8, slow), (1, slow))
        ]
        assert steps[0] == steps[1] == steps[3] == pytest.approx(steps[2] / 3)
        assert steps[0] > 14 * quick.step_seconds
    assert seconds(largest_of(tiny, 8), Config.of(model="gcn"), slow).epoch < 2 * steps[2]
    related = replace(tiny, nodes=80_000, edges=8_000_000, relations=200)
    whole, part = (
        seconds(largest_of(related, ranks), Config.of(model="rgcn"), slow).steps for ranks in (1, 8)
    )
    assert part < whole / 4  # pairs of nodes and relations are divided, and send nothing


def test_the_slowest_part_determines_the_time(tmp_path):
    machine = read_machine("perlmutter-cpu")
    even = replace(WHOLE, nodes=800_000, edges=8_000_000)
    part = replace(largest_of(even, 2), nodes=400_000, edges=4_000_000, volume=None)
    wide, dense = replace(part, nodes=500_000), replace(part, edges=5_000_000)
    for kind in ("gcn", "sage", "rgcn"):
        config = Config.of(model=kind)
        none, one, other, both = (
            seconds(replace(part, busiest=busiest), config, machine).waiting
            for busiest in ((part,), (wide,), (dense,), (wide, dense))
        )
        assert 0 == none < min(one, other)
        assert both == pytest.approx(one + other if kind == "gcn" else max(one, other))


def test_ranks_that_share_a_core_share_its_caches():
    apart = read_machine("perlmutter-cpu")
    few = apart.gathers["sum"].from_rows[0]
    part = replace(largest_of(replace(WHOLE, nodes=int(8 * few), edges=10**6), 4), volume=None)
    shared = replace(apart, ranks_per_node=4, full_speed=2)
    apart, config = replace(shared, full_speed=4), Config.of(model="gcn")
    own, common = (seconds(part, config, machine).gathers for machine in (apart, shared))
    assert common > 2.05 * own  # two turns, and rows come from farther away


def test_rows_with_edges_of_several_messages_are_visited_for_each():
    part = replace(largest_of(WHOLE, 64), halo=1000, volume=None, busiest=())
    for kind in ("gcn", "gat", "gatv2"):
        config = Config.of(model=kind, prune=False)
        lone, visited = (
            sum(rows for *_, rows in evaluation_pass(replace(part, halo=halo), config).gathers)
            for halo in (0, 1000)
        )
        assert visited > lone
