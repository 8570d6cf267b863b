"""Runs a command apart from the terminal; used by jobs/attended.sh.

    python3 -I jobs/apart.py INTERRUPTS COMMAND...

In a session of its own it gets Ctrl-C only from the script, once. Bash lets background commands
ignore SIGINT; with INTERRUPTS `yes` this one does not. If the script is killed, the command gets
SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_ON_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG


def main() -> str:
    interrupts, *command = sys.argv[1:]
    os.setsid()
    if interrupts == "yes":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ON_PARENTS_DEATH, signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
