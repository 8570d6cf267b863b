"""`hpcgnn bench machine`: the numbers of this machine, for `hpcgnn plan --machine FILE`."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from hpcgnn.cli.file_name import file_name
from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, OutputError, say
from hpcgnn.settings import check_range

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

HELP = "what this machine can do, for `hpcgnn plan --machine`: products, kernels, messages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=file_name,
        required=True,
        metavar="FILE.toml",
        help="file to write",
    )
    parser.add_argument(
        "--name", default="", metavar="TEXT", help="name of the machine (default: the host's name)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads per rank (1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, comm: Communicator) -> None:
    check_range("--threads", args.threads, 1, 1 << 16)
    import torch

    from hpcgnn.bench.machine import measure
    from hpcgnn.comm.device import pick_device
    from hpcgnn.storage.write import atomic
    from hpcgnn.train.plan.machine import read_machine

    with agreed(comm, "check the output"):
        if comm.rank == 0:
            _check(args.out, force=args.force)
            with atomic.claim(args.out):  # measuring takes minutes: can it be written at all?
                pass
    torch.set_num_threads(args.threads)
    device = pick_device(comm, args.device)
    name = args.name or platform.node() or "this machine"
    text = measure(comm, comm.broadcast(name, where="bench machine"), device)
    with agreed(comm, "write the machine's numbers"):
        if comm.rank == 0:
            try:
                with atomic.claim(args.out) as temporary:
                    temporary.write_text(text, encoding="utf-8")
                    atomic.publish(temporary, args.out)
            except OSError as error:
                raise OutputError(f"can't be written: {error.strerror}", file=args.out) from None
            machine = read_machine(str(args.out))
            say(f"{args.out}: {machine.source}")


def _check(path: Path, *, force: bool) -> None:
    if path.suffix != ".toml":
        raise InputError("must end in .toml", file=path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError("is not a regular file: choose another name", file=path)
    if not path.exists():
        return
    if not force:
        raise InputError("exists already: choose another name, or use --force", file=path)
    from hpcgnn.train.plan.machine import read_machine

    try:
        read_machine(str(path))
    except InputError:
        raise InputError(
            "exists and was not written by hpcgnn bench machine, so --force doesn't replace it: "
            "choose another name, or remove it",
            file=path,
        ) from None
