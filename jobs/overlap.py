"""Shows how much of the messages an epoch hides, over links of set bandwidths.

    python jobs/overlap.py PART.p2.h5 --options "--model sage --layers 3 --hidden 256"

trains on as many ranks as the partition has parts, first with the machine's own messages, then with
each rank's delayed by `HPCGNN_LINK` to bandwidths around the balance, at which messages take as
long as computing. A line per bandwidth: seconds of an epoch (the least of all but the first), of
computing (an epoch without delay less its waiting), of messages (those of the rank that sends most
at this bandwidth), the epoch as times the larger of both, and the share of the smaller that is
hidden: 1 where an epoch takes as long as the larger alone, 0 where it takes as long as both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HPCGNN = (sys.executable, "-m", "hpcgnn")


def train(part: Path, ranks: int, options: list[str], epochs: int, link: str) -> list[Any]:
    """Train; return the journal's records of all epochs but the first."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*options, f"--epochs={epochs}", f"--eval-every={epochs + 1}"]
        settings += ["--checkpoint-every=0", f"--run-dir={folder}/run"]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "HPCGNN_LINK": link}
        command = ["mpiexec", "-n", str(ranks), *HPCGNN, "train", str(part), *settings]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{shlex.join(command)}: {done.stderr}")
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def epoch_seconds(records: list[Any]) -> float:
    return min(record["epoch_seconds"] - record["evaluate_seconds"] for record in records)


def largest(value: Any) -> float:
    """Return the largest value of all ranks."""
    return float(max(value.values()) if isinstance(value, dict) else value)


def mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, dict) else value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", type=Path)
    parser.add_argument("--options", default="--model sage --layers 3 --hidden 256")
    parser.add_argument("--epochs", type=int, default=3, help="counted")
    parser.add_argument("--balance", type=float, nargs="+", default=[0.5, 1, 2])
    parser.add_argument("--latency", default="5us")
    args = parser.parse_args()
    found = re.search(r"\.p(\d+)\.h5$", args.part.name)
    if found is None:
        sys.exit(f"{args.part}: its name should end in .pP.h5, for P parts")
    options, ranks = shlex.split(args.options), int(found[1])

    def measured(link: str) -> list[Any]:
        return train(args.part, ranks, options, args.epochs + 1, link)

    alone = measured("")
    waiting = min(mean(record["comm_wait_seconds"]) for record in alone)
    computing = epoch_seconds(alone) - waiting
    sent = min(largest(record["bytes_sent"]) for record in alone)  # the last epoch also evaluates
    print(f"{ranks} ranks, {sent / 1e6:.0f} MB sent by the busiest, undelayed: ", end="")
    print(f"{epoch_seconds(alone):.3f} s, of which {waiting:.3f} s are waiting for messages")
    names = ("bandwidth", "epoch", "computing", "messages", "times the larger", "hidden")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)
    for balance in args.balance:
        bandwidth = balance * sent / computing
        epoch = epoch_seconds(measured(f"{bandwidth / 1e6:.3f}MB/s,{args.latency}"))
        parts = sorted((computing, sent / bandwidth))
        hidden = (sum(parts) - epoch) / parts[0]
        row = [f"{bandwidth / 1e6:,.0f} MB/s", f"{epoch:.3f} s", f"{computing:.3f} s"]
        row += [f"{sent / bandwidth:.3f} s", f"{epoch / parts[1]:.2f}", f"{hidden:.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
