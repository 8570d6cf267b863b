"""A peer in a process of its own, with the memory settings it has by itself.

`python -m hpcgnn.bench.worker NAME CASE` (CASE: the fields as JSON) prints the operations that the
peer offers as a JSON list, or as a string why there are none; then it answers each line
`[operation, repeat]` with a sample.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import IO, Any, cast

from hpcgnn import allocation
from hpcgnn.bench.case import Case
from hpcgnn.bench.timing import Sample, Timer, local
from hpcgnn.errors import warn


class Worker:
    """A running peer. `operations` is empty, and says why, where it isn't installed.

    A peer that dies, as by lack of memory, answers samples without seconds from then on.
    """

    def __init__(self, name: str, case: Case) -> None:
        self.name = name
        self._operations: list[str] | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, name, json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=allocation.without(),
            text=True,
        )

    @property
    def operations(self) -> list[str]:
        if self._operations is None:
            answer = self._answer() or "its process ended"
            if isinstance(answer, str):
                warn(f"hpcgnn: {self.name} is left out: {answer}")
            self._operations = [] if isinstance(answer, str) else answer
        return self._operations

    def timer(self, operation: str) -> Timer:
        def time_it(repeat: int) -> Sample:
            question = json.dumps([operation, repeat])
            try:
                print(question, file=cast("IO[str]", self.process.stdin), flush=True)
            except BrokenPipeError:
                return Sample([])
            answer = self._answer()
            return Sample([]) if answer is None else Sample(**answer)

        return time_it

    def _answer(self) -> Any:
        line = cast("IO[str]", self.process.stdout).readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def main(name: str, text: str) -> int:
    # What a peer prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    from hpcgnn.bench.peers import operations

    case = Case(**json.loads(text))
    torch.set_num_threads(case.threads)
    try:
        timers = {key: local(run) for key, run in operations(name, case).items()}
    except Exception as error:  # whatever a peer raises where it doesn't work: told to the user
        print(json.dumps(" ".join(str(error).split())[:200]), file=answers, flush=True)
        return 0
    print(json.dumps(list(timers)), file=answers, flush=True)
    for line in sys.stdin:
        operation, repeat = json.loads(line)
        print(json.dumps(asdict(timers[operation](repeat))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
