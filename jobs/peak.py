"""Runs a command and writes its duration and the peak memory of all its processes.

    python jobs/peak.py OUT COMMAND...      writes "SECONDS MIB STATUS" to OUT

Pages that several processes share count once (PSS); looked at four times a second.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Return the descendants of process `root`, including itself."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(file.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def held(process: int) -> int:
    """Return the process's share of memory (PSS), in KiB."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> int:
    out, *command = sys.argv[1:]
    began, most = time.monotonic(), 0
    with subprocess.Popen(command) as process:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: process.send_signal(number))
        while process.poll() is None:
            most = max(most, sum(map(held, descendants(process.pid))))
            time.sleep(0.25)
    seconds = time.monotonic() - began
    Path(out).write_text(f"{seconds:.1f} {most / 1024:.0f} {process.returncode}\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
