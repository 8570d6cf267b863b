"""Inject many random faults: `python -m tests.faults.sweep --count 100 --seed 0 --folder DIR`.

Prints one line per fault, then the resumed trainings; status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.faults import MODELS, RANKS, Outcome, Workplace
from tests.faults.judge import Fault

# Places of each verb, and the least number of times that they are reached.
MOMENTS = {
    "convert": [("start", 1), ("write", 20), ("sync", 1), ("publish", 1)],
    "partition": [("running", 1), ("exchange", 8), ("write", 20), ("publish", 1)],
    "train": [
        ("running", 1),
        ("forward", 20),
        ("backward", 8),
        ("all-reduce", 8),
        ("save", 5),
        ("write", 80),
        ("sync", 5),
        ("publish", 5),
        ("journal", 8),
    ],
    "predict": [("running", 1), ("forward", 2), ("write", 20), ("publish", 1)],
}


def draw(rng: random.Random) -> Fault:
    """Return a random fault."""
    verb = rng.choices(["convert", "partition", "train", "predict"], [1, 1.5, 6, 1])[0]
    kinds = ["SIGKILL", "SIGSTOP", "SIGTERM", "SIGUSR1"]
    if verb == "convert":
        kinds.remove("SIGSTOP")  # one process: no other rank notices its loss
    rank = 0 if verb == "convert" else rng.randrange(RANKS)
    place, last = rng.choice(MOMENTS[verb])
    model = rng.choice(list(MODELS))
    alone = place == "write" and verb == "train" and model != "embedding"
    if alone or place in ("publish", "journal", "sync") or (verb, place) == ("predict", "write"):
        rank = 0  # the only rank that gets there
    delay = rng.choice([0.0, 0.0, 0.002, 0.02]) if last > 1 else rng.uniform(0.0, 2.0)
    return Fault(verb, rng.choice(kinds), rank, place, rng.randint(1, last), delay, model)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="draw no fault after that time")
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="hpcgnn-faults-"))
    place = Workplace(folder)
    rng = random.Random(args.seed)
    outcomes: list[Outcome] = []
    end = time.monotonic() + 60 * args.minutes
    for number in range(args.count):
        if time.monotonic() > end:
            break
        outcome = place.inject(draw(rng))
        outcomes.append(outcome)
        what = "injected" if outcome.injected else "not reached"
        ended = f"status {outcome.status}, {outcome.seconds:.1f} s"
        problems = "; ".join(outcome.problems)
        print(f"{number + 1:4d} {outcome.fault}: {what}, {ended} {problems}", flush=True)
    bad = [outcome for outcome in outcomes if outcome.problems]
    resumed = place.resume(outcomes)
    for outcome, problems in resumed.items():
        if problems:
            print(f"{outcome.folder}: {'; '.join(problems)}")
    different = sum(map(bool, resumed.values()))
    injected = Counter(f"{o.fault.verb} {o.fault.signal}" for o in outcomes if o.injected)
    print(f"{sum(injected.values())} of {len(outcomes)} injected: {dict(sorted(injected.items()))}")
    print(f"{len(bad)} ended wrongly; {len(resumed)} trainings resumed, {different} differ")
    return 1 if bad or different else 0


if __name__ == "__main__":
    sys.exit(main())
