"""The command `hpcgnn`: finds the verb, parses its options, runs it."""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from hpcgnn import system
from hpcgnn.cli import displays, streams
from hpcgnn.cli.help import FIRST_STEPS, completion, explain, shape
from hpcgnn.cli.interruption import interruption_said
from hpcgnn.comm import world
from hpcgnn.comm.agreement import require_same
from hpcgnn.comm.environment import forgone
from hpcgnn.comm.launcher import launched
from hpcgnn.comm.liveness import early, limit, ulimits
from hpcgnn.comm.liveness.failure import Failure
from hpcgnn.comm.liveness.termination import Terminated, terminable
from hpcgnn.errors import HpcgnnError, InputError, OutOfMemoryError, shortened, warn
from hpcgnn.system import is_named_pipe
from hpcgnn.version import __version__

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

VERBS = {
    "generate": "generate a random graph with communities, or an R-MAT graph",
    "convert": "convert source files to graph.h5",
    "partition": "divide a graph into parts, one per rank",
    "train": "train a model on all ranks",
    "predict": "apply a checkpoint to every node",
    "export": "write a checkpoint's weights for PyTorch Geometric",
    "info": "show what a file holds",
    "plan": "estimate memory and time of a job before it is submitted",
    "report": "show the results and costs of runs, as text and as a page with figures",
    "new": "write a model file as a starting point for your own",
    "jobs": "copy the job scripts for Slurm",
    "doctor": "check this installation",
    "bench": "measure epochs, kernels, messages and scaling, compared with peers",
}

SERIAL = ("convert", "export", "info", "plan", "report", "new", "jobs")
SHOWING = ("info", "plan", "report", "doctor", "bench")  # their printed output is their result
_ROOM = {  # bytes of address space
    **dict.fromkeys(SERIAL, 256 << 20),
    "report": 640 << 20,
    **dict.fromkeys(("train", "predict", "export", "plan", "bench"), 1 << 30),  # with PyTorch
}
_ROOM_WITH_MPI = 640 << 20
_FILES = 24  # open at a time; with MPI more, see comm.liveness.ulimits
_LONGEST = 600  # characters of a message about an option
_HELPS = ("-h", "--help", "--help-all", "--version", "--print-completion")
_OWN = ("stop", "timeout")  # options that may differ between ranks


class _Parser(argparse.ArgumentParser):
    verb: argparse.ArgumentParser | None = None
    given: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = args or ()
        if isinstance(self.verb, _Parser):
            self.verb.given = self.given
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # An argument unknown to a verb's parser is reported by the parent's.
        parser = self if self.verb is None else self.verb
        text = shortened(explain(parser, message, self.given), _LONGEST)
        listed = "verbs" if parser.prog == "hpcgnn" else "options"
        raise InputError(f"{text}; `{parser.prog} --help` lists the {listed}")

    def _print_message(self, message: str, file: Any = None) -> None:
        if launched()[0] == 0:
            super()._print_message(message, file)


def _seconds(text: str) -> float:
    try:
        return limit.seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds above 0, at most {limit.MOST_SECONDS:.0e}: {text!r}"
        ) from None


def _parser(modules: Mapping[str, ModuleType], argv: Sequence[str]) -> _Parser:
    """Return a parser of all verbs, with the options of those whose modules are given."""
    parser = _Parser(
        prog="hpcgnn",
        description="Full-batch graph neural networks over MPI.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hpcgnn {__version__}")
    parser.add_argument(
        "--print-completion",
        metavar="SHELL",
        help="print a completion script for bash, zsh, tcsh or fish",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, help_line in VERBS.items():
        sub = verbs.add_parser(name, help=help_line, description=help_line)
        if name not in modules:
            continue
        modules[name].add_arguments(sub)
        if modules[name].PARALLEL is not False:
            sub.add_argument(
                "--timeout",
                type=_seconds,
                metavar="SECONDS",
                help="longest wait for another rank (default: HPCGNN_TIMEOUT, or 600)",
            )
        if name in displays.VERBS:
            displays.add_options(sub)
        shape(sub, name, argv)
        if len(modules) == 1:
            parser.verb = sub
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"hpcgnn.cli.{verb}")


@dataclass
class Command:
    """The parsed command line; `problem` is the error if it is invalid."""

    verb: str | None
    module: ModuleType | None = None
    args: argparse.Namespace | None = None
    problem: BaseException | None = None

    @classmethod
    def read(cls, argv: list[str]) -> Command:
        command = cls(argv[0] if argv and argv[0] in VERBS else None)
        try:
            _check_folder()
            if argv and argv[0] == "--print-completion":
                modules = {name: _module(name) for name in VERBS}
                script = completion(_parser(modules, ["--help-all"]), " ".join(argv[1:]))
                if launched()[0] == 0:
                    print(script)
                raise SystemExit(0)
            if command.verb is not None:
                _check_room(_ROOM.get(command.verb, _ROOM_WITH_MPI))
                ulimits.check_files(_FILES, "the libraries")
                if command.verb in displays.VERBS:
                    displays.begin(argv)
                command.module = _module(command.verb)
            modules = {command.verb: command.module} if command.verb and command.module else {}
            command.args = _parser(modules, argv).parse_args(argv)
            _refuse_pipes(command.args)
        except (Exception, SystemExit) as error:  # other ranks may have no error
            command.problem = error
        return command

    @property
    def helped(self) -> bool:
        """Whether --help or --version was requested; their texts have been printed already."""
        return isinstance(self.problem, SystemExit)

    @property
    def serial(self) -> bool:
        """Whether a single process does the work."""
        if self.verb is None or self.helped:
            return True
        return self.verb in SERIAL if self.module is None else self.module.PARALLEL is False

    @property
    def parallel(self) -> bool | None:
        """The `parallel` of `world.run`: an error of one rank needs MPI to reach the others.

        The same holds for a serial verb in several processes, which may have different command
        lines.
        """
        if launched()[1] > 1:
            return None if self.serial else True if self.module is None else self.module.PARALLEL
        if self.problem or self.serial or self.module is None:
            return False
        kind: bool | None = self.module.PARALLEL
        return kind

    def listening(self) -> AbstractContextManager[Any]:
        """Return a context that handles signals from the start, if the verb provides one."""
        if self.module is None or self.problem is not None or not hasattr(self.module, "listen"):
            return nullcontext()
        listener: AbstractContextManager[Any] = self.module.listen(self.args)
        return listener

    def run(self, comm: Communicator | None) -> int:
        """Run the verb, after checking that all ranks have the same options."""
        if comm is not None:
            comm.agree(None if self.helped else self.problem, where="read the options")
            verb = "--help or --version" if self.helped else self.verb
            given = {} if self.args is None else vars(self.args)
            given = {name: value for name, value in given.items() if name not in (*_OWN, "verb")}
            require_same(comm, {"the release": __version__, "verb": verb, **given}, "options")
        if self.problem is not None:
            raise self.problem
        if self.module is None:
            return 0
        status: int
        if self.serial and comm is not None:
            return self._run_on_first(comm, self.module)
        if launched()[1] > 1 and comm is None:
            self._say_alone()
        with interruption_said(self.verb, self.args):
            status = self.module.run(self.args, comm)
        return status

    def _say_alone(self) -> None:
        warn(f"hpcgnn: note: {self.verb} runs on one process: the other ranks do nothing")

    def _run_on_first(self, comm: Communicator, module: ModuleType) -> int:
        """Run a serial verb on rank 0 while the others wait, however long it takes."""
        from hpcgnn.comm.workers import Workers

        comm.timeout = limit.MOST_SECONDS
        status, error = 0, None
        workers = Workers(comm)
        shared = getattr(module, "SHARED", False)
        with interruption_said(self.verb, self.args):
            if comm.rank == 0:
                if not shared:
                    self._say_alone()
                try:
                    status = module.run(self.args, workers if shared else None)
                    if shared and not workers.used:
                        self._say_alone()
                except Exception as caught:
                    error = caught
                workers.close()
            else:
                workers.serve()
        failed = comm.broadcast(error is not None, where="serial verb")
        # Raised on all ranks alike, since it does not concern rank 0 alone.
        comm.agree(error or (HpcgnnError("failed on rank 0") if failed else None), "serial verb")
        return status


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status (0, or the error's `exit_status`)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        system.set_up()
        streams.set_up(log=bool(argv) and argv[0] not in SHOWING and not _shows_help(argv))
        with terminable(), _without_mpi(argv):
            command = Command.read(argv)
            with command.listening():
                return world.run(
                    command.run,
                    parallel=command.parallel,
                    timeout=getattr(command.args, "timeout", None),
                )
    except (KeyboardInterrupt, Terminated, BrokenPipeError) as error:
        status = Failure.of(error).status
        early.end_without_mpi(status)
        return status


def _without_mpi(argv: list[str]) -> AbstractContextManager[None]:
    """Return a context without MPI for help and serial verbs: a login node may refuse MPI."""
    alone = bool(argv) and (argv[0] in SERIAL or _shows_help(argv))
    return forgone() if alone and launched()[1] == 1 else nullcontext()


def _shows_help(argv: list[str]) -> bool:
    return not set(_HELPS).isdisjoint(argv)


def _check_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working folder can't be used ({error.strerror}): change to one that exists"
        ) from None


def _check_room(least: int) -> None:
    """Check the limits on memory: SciPy's library hangs and others crash below `least`.

    Args:
        least: bytes of address space, of which a fifth is data.
    """
    for option, kind, needed in (
        ("v", resource.RLIMIT_AS, least),
        ("d", resource.RLIMIT_DATA, least // 5),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise OutOfMemoryError(
                f"`ulimit -{option} {limit >> 10}` leaves too little for the libraries: give at "
                f"least {needed >> 10}"
            )


def _refuse_pipes(args: argparse.Namespace) -> None:
    """Refuse named pipes: opening one blocks until another process opens it too."""
    values = vars(args).values()
    lists = (value if isinstance(value, list) else [value] for value in values)
    for value in (value for values in lists for value in values):
        if not isinstance(value, str | Path):
            continue
        path = str(value).rpartition("=")[2]
        with suppress(OSError, ValueError):
            if is_named_pipe(Path(path).stat()):
                raise InputError("is a named pipe: use a regular file", file=path)


if __name__ == "__main__":
    sys.exit(main())
