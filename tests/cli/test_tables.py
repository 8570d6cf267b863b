"""From tables to predictions by the user's own ids, with the commands of docs/tables.md."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcgnn.errors import InputError
from tests.cli.verbs import call
from tests.test_readme import blocks

COLOURS = ("blue", "green", "grey", "red")


def write_tables(rng: np.random.Generator) -> dict[str, str]:
    """Write the four tables; return the colours of the later users."""
    number, later = 500, 60
    users = [f"user_{k:05d}" for k in rng.permutation(10**5)[: number + later]]
    colours = rng.integers(0, 4, number + later)
    ends = rng.integers(0, number + later, (40_000, 2))
    alike = colours[ends[:, 0]] == colours[ends[:, 1]]
    ends = ends[alike | (rng.random(len(ends)) < 0.05)][:9000]
    kind = rng.choice(["bot", "person"], number + later)
    features = rng.normal(size=(number + later, 8)) + np.eye(4, 8)[colours]
    old = (ends < number).all(axis=1)
    for name, rows in (("edges", ends[old]), ("later_edges", ends[~old])):
        with Path(f"{name}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["follower", "followed", "weight", "seconds"])
            out.writerows((users[a], users[b], round(rng.random(), 3), 17 * a) for a, b in rows)
    known = [COLOURS[c] if rng.random() < 0.3 else None for c in colours[:number]]
    columns = {"user": users[:number], "kind": kind[:number]}
    columns |= {f"f{k}": features[:number, k].astype(np.float32) for k in range(8)}
    pq.write_table(pa.table(columns | {"colour": pa.array(known, pa.string())}), "nodes.parquet")
    with Path("later.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["user", "kind", *(f"f{k}" for k in range(8))])
        for k in range(number, number + later):
            out.writerow([users[k], kind[k], *features[k]])
    return {users[k]: COLOURS[colours[k]] for k in range(number, number + later)}


@pytest.mark.mpi
def test_the_commands_of_the_tables_page_run(comm, shared_path, monkeypatch, capsys):
    monkeypatch.chdir(shared_path)
    truth = write_tables(np.random.default_rng(0)) if comm.rank == 0 else {}
    comm.barrier()
    script = blocks("sh", "docs/tables.md")[0][1]
    commands = [shlex.split(line) for line in script.replace("\\\n", " ").splitlines()]
    assert len(commands) <= 6 and all(command[0] == "hpcgnn" for command in commands)
    assert all(len(command.splitlines()) <= 2 for command in re.split(r"(?<!\\)\n", script))
    parts = "later.h5" if comm.size == 1 else "later.p.h5"
    for _, name, *arguments in commands:
        verb = import_module(f"hpcgnn.cli.{name}")
        if name == "predict" and comm.size > 1:  # as the page describes for several ranks
            call(comm, import_module("hpcgnn.cli.partition"), "later.h5", "-o", parts)
        arguments = [parts if a == "later.h5" and name == "predict" else a for a in arguments]
        if verb.PARALLEL:
            call(comm, verb, *arguments)
        else:
            if comm.rank == 0:
                call_alone(verb, *arguments)
            comm.barrier()
    files = {}
    for ending in ("parquet", "npz", "h5"):
        files[ending] = f"p.{ending}"
        call(
            comm,
            import_module("hpcgnn.cli.predict"),
            parts,
            "run",
            "--only",
            "later.csv",
            "-o",
            files[ending],
        )
    if comm.rank == 0:
        Path("more.csv").write_text("user\nnobody\nnoone\n")
    comm.barrier()
    for only, words in (
        ("more.csv", "more.csv: lists 2 nodes that the graph does not have .found 'nobody'"),
        ("absent.csv", "absent.csv: no such file"),
    ):
        given = (parts, "run", "--only", only, "-o", "none.csv")
        with pytest.raises(InputError, match=words):
            call(comm, import_module("hpcgnn.cli.predict"), *given)
    if comm.rank == 0:  # another graph, whose classes have other names
        table = pq.read_table("nodes.parquet")
        other = pa.array([c and f"dark {c}" for c in table["colour"].to_pylist()], pa.string())
        pq.write_table(table.drop("colour").append_column("colour", other), "other.parquet")
        names = {"nodes.parquet": "other.parquet", "graph.h5": "other.h5"}
        given = [names.get(argument, argument) for argument in commands[0][2:]]
        call_alone(import_module("hpcgnn.cli.convert"), *given)
    comm.barrier()
    call(comm, import_module("hpcgnn.cli.partition"), "other.h5", "-o", "other.p.h5")
    given = ("other.p.h5", "run", "--any-graph", "-o", "other.csv")
    call(comm, import_module("hpcgnn.cli.predict"), *given)
    if comm.rank:
        return
    with Path("predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["original_id"] for row in rows] == list(truth)
    right = np.mean([row["class"] == truth[row["original_id"]] for row in rows])
    assert right > 0.8
    chances = np.array([[float(row[f"probability_{c}"]) for c in COLOURS] for row in rows])
    assert [COLOURS[k] for k in chances.argmax(axis=1)] == [row["class"] for row in rows]
    table = pq.read_table("p.parquet").to_pylist()
    with np.load("p.npz") as npz, h5py.File("p.h5") as h5:
        assert npz["original_ids"].tolist() == [row["original_id"] for row in table] == list(truth)
        assert [name.decode() for name in h5["original_ids"]] == list(truth)
        assert npz["class_names"].tolist() == list(COLOURS)
        np.testing.assert_allclose(npz["probabilities"], chances, rtol=1e-6)
        named = [COLOURS[k] for k in h5["classes"]]
    with Path("other.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert columns == ["original_id", "class", *(f"probability_{k}" for k in range(4))]
    assert "classes are written by number" in capsys.readouterr().err
    call_alone(import_module("hpcgnn.cli.info"), "later.h5")
    said = capsys.readouterr().out
    assert re.search(r"^  classes +blue, green, grey, red$", said, re.MULTILINE)
    assert re.search(r"^  ids +user_.*\(560 in all\)$", said, re.MULTILINE)
    assert named == [row["class"] for row in table] == [row["class"] for row in rows]


@pytest.mark.mpi
def test_edge_classes_are_predicted_by_name(comm, shared_path, monkeypatch):
    monkeypatch.chdir(shared_path)
    if comm.rank == 0:
        rng = np.random.default_rng(0)
        pairs = rng.permutation(30 * 30)[:300]
        ends = [(f"acct{k // 30}", f"acct{k % 30}") for k in pairs]
        kinds = rng.choice(["fine", "fraud", ""], 300)
        rows = (f"{a},{b},{kind}\n" for (a, b), kind in zip(ends, kinds, strict=True))
        Path("payments.csv").write_text("payer,payee,verdict\n" + "".join(rows))
        people = "".join(f"acct{k},{rng.normal():.3f},1\n" for k in range(30))
        Path("accounts.csv").write_text("id,x1,x2\n" + people)
        script = blocks("sh", "docs/tables.md")[2][1]
        command = shlex.split(script.replace("\\\n", " ").splitlines()[0])
        assert command[:2] == ["hpcgnn", "convert"] and "--edge-label" in command
        call_alone(import_module("hpcgnn.cli.convert"), *command[2:])
        Path("asked.csv").write_text("acct1,acct2\nacct29,acct0\n")
    comm.barrier()
    call(
        comm,
        import_module("hpcgnn.cli.partition"),
        "graph.h5",
        "--method",
        "random",
        "-o",
        "g.p.h5",
    )
    train, predict = (import_module(f"hpcgnn.cli.{verb}") for verb in ("train", "predict"))
    options = ("--task", "edge-classes", "--epochs", 3, "--hidden", 4, "--run-dir", "run")
    call(comm, train, "g.p.h5", *options)
    call(comm, predict, "g.p.h5", "run", "-o", "all.csv")
    call(comm, predict, "g.p.h5", "run", "-o", "few.csv", "--pairs", "asked.csv")
    if comm.rank:
        return
    for name, wanted in (("all", set(ends)), ("few", {("acct1", "acct2"), ("acct29", "acct0")})):
        with Path(f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["source_id"], row["target_id"]) for row in rows} == wanted
        for row in rows:
            shares = {kind: float(row[f"probability_{kind}"]) for kind in ("fine", "fraud")}
            assert row["class"] == max(shares, key=lambda kind: shares[kind])


@pytest.mark.mpi
def test_the_commands_for_tables_by_type_run(comm, shared_path, monkeypatch, capsys):
    """Papers cite papers of their topic; the graph is also cut for several ranks."""
    monkeypatch.chdir(shared_path)
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 300)
    if comm.rank == 0:
        ((_, meta),) = blocks("yaml", "docs/tables.md")
        write_typed_tables(Path("papers"), meta, topics, rng)
        write_later_tables(Path("papers"), Path("later_papers"), rng)
    comm.barrier()
    script = blocks("sh", "docs/tables.md")[1][1]
    for line in script.splitlines():
        _, name, *arguments = shlex.split(line)
        verb = import_module(f"hpcgnn.cli.{name}")
        if name == "predict" and comm.size > 1:
            arguments[0] = arguments[0].replace(".h5", ".p.h5")
        if verb.PARALLEL:
            call(comm, verb, *arguments)
        elif comm.rank == 0:
            call_alone(verb, *arguments)
        comm.barrier()
        if name == "convert" and comm.size > 1:
            partition = import_module("hpcgnn.cli.partition")
            parts = arguments[1].replace(".h5", ".p.h5")
            call(comm, partition, arguments[1], "--method", "random", "-o", parts)
    if comm.rank:
        return
    rows, later = read_rows("predictions.csv"), read_rows("later.csv")
    assert later.keys() - rows.keys() == {"user/new", "country/xx"}
    for id, row in rows.items():  # the same graph, though its rows have another order
        for name in ("probability_topic 0", "probability_topic 1", "probability_topic 2"):
            assert float(later[id][name]) == pytest.approx(float(row[name]), abs=1e-5)
    said = capsys.readouterr()
    assert "note: nodes without features that the graph trained on lacks: 1 of 3;" in said.err
    found = {id: row["class"] for id, row in rows.items()}
    assert {name.split("/")[0] for name in found} == {"user", "paper", "country"}
    right = [found[f"paper/{k}"] == f"topic {topic}" for k, topic in enumerate(topics)]
    assert np.mean(right) > 0.8
    call_alone(import_module("hpcgnn.cli.info"), "graph.h5")
    said = capsys.readouterr().out
    assert re.search(r"^  features of user +age, kind=a, kind=b$", said, re.MULTILINE)


def write_typed_tables(
    folder: Path, meta: str, topics: np.ndarray, rng: np.random.Generator
) -> None:
    """Write the tables that docs/tables.md describes, into a new folder."""
    folder.mkdir()
    (folder / "meta.yaml").write_text(meta)
    users, number = [f"u{k}" for k in range(40)], len(topics)
    writers = rng.choice(users, 500)
    written = pa.table({"author_id": writers, "paper_id": rng.integers(0, number, 500)})
    pq.write_table(written, folder / "writes.parquet")
    ends = rng.integers(0, number, (6000, 2))
    ends = ends[topics[ends[:, 0]] == topics[ends[:, 1]]]
    cited = pa.table({"citing": ends[:, 0], "cited": ends[:, 1]})
    pq.write_table(cited, folder / "cites.parquet")
    homes = "".join(f"{user},{rng.choice(['de', 'fr'])}\n" for user in users)
    (folder / "located.csv").write_text("user,country\n" + homes)
    people = "".join(f"{u},{k},{'ab'[k % 2]}\n" for k, u in enumerate(users))
    (folder / "users.csv").write_text("user,age,kind\n" + people)
    values = rng.normal(size=(number, 3)) + 2 * np.eye(3)[topics]
    known = rng.random(number) < 0.5
    rows = (
        f"{k},{f'topic {topic}' if known[k] else ''},{','.join(map(str, values[k]))}\n"
        for k, topic in enumerate(topics)
    )
    (folder / "papers.csv").write_text("paper,topic,x1,x2,x3\n" + "".join(rows))


def write_later_tables(folder: Path, later: Path, rng: np.random.Generator) -> None:
    """Write tables of the same graph in another order, and a user in a new country."""
    shutil.copytree(folder, later)
    for name, more in (("users", ["new,3,a"]), ("located", ["new,xx"]), ("papers", [])):
        header, *rows = (folder / f"{name}.csv").read_text().splitlines()
        rows = [*rng.permutation(rows), *more]
        (later / f"{name}.csv").write_text("\n".join([header, *rows, ""]))


def read_rows(name: str) -> dict[str, dict[str, str]]:
    with Path(name).open(newline="") as file:
        return {row["original_id"]: row for row in csv.DictReader(file)}


def call_alone(verb, *arguments: str) -> None:
    """Run a verb on one rank."""
    import argparse

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args(arguments), None) == 0
