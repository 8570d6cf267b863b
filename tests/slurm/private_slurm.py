"""A private Slurm: munged, slurmctld and two slurmd on this host, in a folder of their own.

It needs no root and touches nothing outside its folder. It is ready in about a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from getpass import getuser
from pathlib import Path

PATIENCE = 300.0  # seconds on a busy machine; all take a few on a quiet one
DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=private
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=0
KillWait=10
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2 PreemptMode=OFF
"""


def program(name: str) -> str | None:
    """Return the path of a daemon or command of Slurm, or None if it is not installed."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until `condition()` is true; raise AssertionError naming `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{seconds} s passed without: {what}"
        time.sleep(0.1)


class PrivateSlurm:
    """A running private Slurm with the nodes n1 and n2 of 4 CPUs each.

    Jobs of the partition `urgent` put those of `main`, the default, back into the queue.

    `folder` must have a short path: it holds a Unix socket. `environment` is added to every job's.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI", "SBATCH"))}
        self.environment = kept | environment | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        text = CONFIGURATION.format(folder=folder, user=getuser(), ports=_free_ports(3))
        (folder / "slurm.conf").write_text(text)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (folder / name).mkdir()

    def start(self) -> None:
        """Start the daemons; return when both nodes are idle."""
        self._daemon(
            "munged",
            "--foreground",
            f"--key-file={self.folder}/munge.key",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        wait_for((self.folder / "munge.socket").exists, PATIENCE, "munged's socket")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        wait_for(
            lambda: self.node_states() == ["idle", "idle"], PATIENCE, f"idle nodes; {self.folder}"
        )

    def _daemon(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    [str(program(name)), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self.environment,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """Cancel all jobs, wait until their processes are gone, end the daemons."""
        try:
            self.run("scancel", "--user", getuser(), check=False)
            wait_for(lambda: not self.run("squeue", "--noheader"), PATIENCE, "an empty queue")
        finally:
            for daemon in reversed(self._daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(self._daemons):
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()

    def run(self, command: str, *args: object, check: bool = True, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands or a script of jobs/; return its output."""
        done = subprocess.run(
            [program(command) or command, *map(str, args)],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=cwd,
            timeout=PATIENCE,
        )
        assert not check or done.returncode == 0, f"{command} {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *args: object, cwd: Path) -> int:
        """Run `sbatch ARGS` in the folder `cwd`; return the job's id."""
        return int(self.run("sbatch", "--parsable", *args, cwd=cwd))

    def field(self, job: int, name: str) -> str:
        """Return one field of `scontrol show job`, such as JobState or Restarts."""
        found = re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))
        assert found, f"job {job} has no {name}"
        return found[1]

    def state(self, job: int) -> str:
        """Return the job's state, such as PENDING, RUNNING, COMPLETED."""
        return self.field(job, "JobState")

    def wait(self, job: int, state: str, seconds: float = PATIENCE) -> None:
        """Wait until the job is in `state`; fail with its log if it ends in another."""
        others = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} - {state}
        end = time.monotonic() + seconds
        while (now := self.state(job)) != state:
            late = time.monotonic() > end
            assert not late and now not in others, f"job {job} is {now}:\n{self.log(job)}"
            time.sleep(0.1)

    def log(self, job: int) -> str:
        """Return the job's output so far."""
        path = Path(self.field(job, "StdOut"))
        return path.read_text() if path.exists() else ""

    def release(self, job: int) -> None:
        """Start a requeued job now; Slurm would wait two minutes."""
        self.wait(job, "PENDING")
        # slurmd refuses a job that ended in the same second.
        time.sleep(2)
        self.run("scontrol", "update", f"jobid={job}", "StartTime=now")

    def set_node(self, node: str, state: str) -> None:
        """Set a node `down`, or `resume` it, which waits until the node is idle again."""
        reason = ["reason=test"] if state == "down" else []
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", *reason)
        if state == "resume":
            wait_for(lambda: "down" not in " ".join(self.node_states()), PATIENCE, f"{node} back")

    def node_states(self) -> list[str]:
        """Return the states of n1 and n2, such as idle, allocated, down*."""
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
