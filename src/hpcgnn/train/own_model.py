"""A user's model for the command line: `FILE.py:NAME`, its arguments and its checksum."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hpcgnn.comm.agreement import agreed, require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, printable, shortened
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.loading import GUARD, MODULE
from hpcgnn.models.settings import OWN, ModelSettings
from hpcgnn.settings import nearest

_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelFile:
    """A Python file, and the name in it that makes the model.

    Attributes:
        name: name of the class or function.
        sha256: checksum of the file's content.
    """

    path: Path
    name: str
    sha256: str

    @staticmethod
    def of(settings: ModelSettings) -> ModelFile:
        """Return the file that --model names.

        Raises:
            InputError: it can't be read, or the model was made by a Python program.
        """
        if settings.kind == OWN:
            raise InputError(
                "--model own stands for a model made by a Python program: name its file with "
                "--model FILE.py:NAME"
            )
        text, _, name = settings.kind.rpartition(":")
        path = Path(text)
        try:
            if not path.is_file():
                raise InputError("no such file, for --model FILE.py:NAME", file=path)
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=path) from None
        if len(content) > _MOST_BYTES:
            raise InputError("is too large for a Python program", file=path)
        return ModelFile(path, name, hashlib.sha256(content).hexdigest())

    def stored(self) -> dict[str, Any]:
        """Return the entries for checkpoints."""
        return {"file": printable(self.path.name), "name": self.name, "sha256": self.sha256}

    def differs(self, stored: dict[str, Any]) -> str:
        """Return how the file differs from the one in a checkpoint; empty if it is the same."""
        known = stored.get("sha256")
        if known == self.sha256:
            return ""
        return (
            f"{self.path} has the checksum {self.sha256[:12]}, but the model was trained with one "
            f"of {str(known)[:12]}"
        )

    def build(self, graph: PartitionedGraph, arguments: str, seed: int) -> torch.nn.Module:
        """Return NAME(graph, **arguments), made with torch's seed set; collective.

        Raises:
            InputError: the file has no such name or trains when it is loaded, the arguments can't
                be read or are others than NAME takes, or the result isn't a module; on all ranks.
                An exception in the file ends the job with its traceback.
        """
        require_same(graph.comm, {"sha256": self.sha256}, "files of the model", file=self.path)
        with agreed(graph.comm, "the file of the model"):
            keywords = parse_arguments(arguments)
            module = self._imported()
            make = getattr(module, self.name, None)
            if not callable(make):
                raise InputError(f"defines no class or function {self.name}", file=self.path)
            first = self._check_call(make, keywords)
            torch.manual_seed(seed)
            try:
                model = make(graph, **keywords)
            except Exception as error:
                self._refuse_misuse(error, first)
                if first not in ("", "graph"):
                    error.add_note(f"{self.name} is called with the graph, here as `{first}`")
                raise
            if not isinstance(model, torch.nn.Module):
                raise InputError(
                    f"{self.name} must return a torch.nn.Module",
                    file=self.path,
                    value=type(model).__name__,
                )
        self._check_neighbours(graph.comm)
        return model

    def _check_call(self, make: Callable[..., Any], keywords: dict[str, Any]) -> str:
        """Check that `make(graph, **keywords)` fits its signature; return the graph's argument.

        Raises:
            InputError: an argument is missing, unknown or is the graph itself.
        """
        try:
            asked = list(inspect.signature(make).parameters.values())
        except (TypeError, ValueError):
            return ""  # a callable written in C
        problem, first = _misfit(asked, keywords)
        if problem:
            raise InputError(f"{self.name} {problem}", file=self.path)
        return first

    def _refuse_misuse(self, error: Exception, first: str) -> None:
        """Raise InputError if the model took the graph for something else, such as a width."""
        known = isinstance(error, TypeError | AttributeError | InputError)
        if not known or PartitionedGraph.__name__ not in str(error):
            return
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == self.path.resolve()
        ]
        raise InputError(
            f"the first argument of {self.name}, here `{first}`, is the graph; take widths from "
            "it, such as graph.features.shape[1] and graph.num_classes: "
            f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 120)}",
            file=f"{self.path}, line {lines[-1]}" if lines else self.path,
        ) from None

    def _check_neighbours(self, comm: Communicator) -> None:
        """Check that modules of its folder imported by all ranks are the same files; collective."""
        folder, found = self.path.resolve().parent, {}
        for name, module in list(sys.modules.items()):
            path = Path(getattr(module, "__file__", None) or "/")
            if folder in path.parents and path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        names = set(found).intersection(*comm.allgather(set(found), where="files of the model"))
        facts = {name: found[name] for name in sorted(names)}
        require_same(comm, facts, "files beside that of the model", file=self.path)

    def _imported(self) -> ModuleType:
        name = f"{MODULE}{self.sha256[:12]}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise InputError("can't be imported", file=self.path)
        module = importlib.util.module_from_spec(spec)
        # Dataclasses, among others, look up their module there.
        sys.modules[name] = module
        with _on_path(self.path.resolve().parent):
            try:
                spec.loader.exec_module(module)
            except SystemExit:
                raise InputError(
                    f"ends when it is loaded for its model, as a script does: {GUARD}",
                    file=self.path,
                ) from None
        return module


def _misfit(asked: list[inspect.Parameter], keywords: dict[str, Any]) -> tuple[str, str]:
    """Return why (graph, **keywords) doesn't fit these parameters ("" if it does), and the first.

    Returns:
        The problem in words that follow the function's name, and the name of its first argument.
    """
    kinds = inspect.Parameter
    places = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    if not asked or asked[0].kind not in places:
        return "takes no argument: it is called with the graph, and --model-args by name", ""
    first, rest = asked[0], asked[1:]
    if first.name in keywords and first.kind is kinds.POSITIONAL_OR_KEYWORD:
        return f"gets the graph as `{first.name}`: leave it out of --model-args", first.name
    named = [p for p in rest if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    names = [parameter.name for parameter in named]
    free = any(parameter.kind is kinds.VAR_KEYWORD for parameter in rest)
    unknown = [name for name in keywords if name not in names]
    if unknown and not free:
        listed = f": it takes {', '.join(names)}" if names else ": it takes the graph alone"
        offered = nearest(unknown[0], names) or listed
        return f"has no argument {unknown[0]}, which --model-args gives{offered}", first.name
    missing = [p.name for p in named if p.default is kinds.empty and p.name not in keywords]
    if missing:
        write = ",".join(f"{name}=VALUE" for name in missing)
        graph = "" if first.name == "graph" else f" (`{first.name}` is the graph)"
        return f"needs {' and '.join(missing)}{graph}: give --model-args {write}", first.name
    return "", first.name


def parse_arguments(text: str) -> dict[str, Any]:
    """Return the arguments in a text such as `hidden=64,norm=batch`: Python literals or strings.

    Raises:
        InputError: a part is not NAME=VALUE.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in _parts(text))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier() or name in found:
            raise InputError("--model-args takes NAME=VALUE,NAME=VALUE", value=part)
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found[name] = value
    return found


def _parts(text: str) -> Iterator[str]:
    """Yield the parts between commas that are outside brackets."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Put the folder first in sys.path in the context, so that the file can import neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
