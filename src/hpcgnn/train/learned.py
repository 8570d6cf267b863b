"""What training changes: the parameters and buffers of the model and of the task, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from hpcgnn.comm.agreement import require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, say
from hpcgnn.nn.layer import numbered
from hpcgnn.nn.linear import is_sharded
from hpcgnn.nn.norm import SYNCHRONISED, unsynchronised

OF_TASK = "task:"
_MOST_NAMED = 5
_KEPT = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)


class Learned:
    """The model's parameters and buffers by name; names in the task's module begin with `task:`."""

    def __init__(self, model: torch.nn.Module, of_task: torch.nn.Module | None = None) -> None:
        self.modules = {"": model} | ({} if of_task is None else {OF_TASK: of_task})

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        seen: set[int] = set()
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield prefix + name, parameter

    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, Tensor]:
        return {
            prefix + name: value
            for prefix, module in self.modules.items()
            for name, value in module.state_dict().items()
        }

    def second_names(self) -> dict[str, str]:
        """Return the first name of parameters with several names, by each of their other names."""
        first = {id(parameter): name for name, parameter in self.named_parameters()}
        return {
            prefix + name: first[id(parameter)]
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if first[id(parameter)] != prefix + name
        }

    def sharded_names(self) -> set[str]:
        """Return the names in `state_dict` of parameters of which each rank has its own rows."""
        return {
            prefix + name
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if is_sharded(parameter)
        }

    def train(self, mode: bool = True) -> None:
        for module in self.modules.values():
            module.train(mode)

    def to(self, device: torch.device) -> None:
        for module in self.modules.values():
            module.to(device)

    def check(self, comm: Communicator) -> None:
        """Check that all can be trained over ranks and kept in a checkpoint; collective.

        Rank 0 prints the names of frozen parameters.

        Raises:
            InputError: something can't be; the line names the parameter or the module.
        """
        self._check_kinds()
        for prefix, module in self.modules.items():
            norms = [prefix + name for name in unsynchronised(module)] if comm.size > 1 else []
            if norms:
                raise InputError(
                    f"the model's {some(norms)} normalises over the nodes of one rank only: "
                    f"{SYNCHRONISED}"
                )
        for name, parameter in self.named_parameters():
            if isinstance(parameter, UninitializedParameter):
                raise InputError(
                    f"the model's {name} has no shape yet: call a model with lazy layers once "
                    "before it is trained"
                )
        for name, value in self.state_dict().items():
            if not isinstance(value, Tensor) or value.dtype not in _KEPT:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"the model's {name} can't be kept in a checkpoint: its type is {kind}, not "
                    "float32, float64, int64, uint8 or bool; --precision bf16 computes in bfloat16"
                )
        if loose := self._loose():
            raise InputError(
                f"the model's {some(loose)} requires a gradient but is not a registered parameter, "
                "so nothing would train it: make it a torch.nn.Parameter, and lists of modules or "
                "parameters a torch.nn.ModuleList or ParameterList"
            )
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError("the model has no parameter to train (requires_grad)")
        shapes = {
            name: (tuple(value.shape), str(value.dtype)) if not sharded else "of this rank"
            for name, value in self.state_dict().items()
            for sharded in [name in self.sharded_names()]
        }
        require_same(comm, shapes, "parameters")
        self._note_frozen(comm)

    def _check_kinds(self) -> None:
        """Raise InputError for layers that can't send messages: compiled or of another library."""
        for name, module in self.modules[""].named_modules():
            compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
            if compiled and any(_is_ours(inner) for inner in module.modules()):
                raise InputError(
                    f"{name or 'the model'} is compiled by torch.compile, which can't trace layers "
                    "that send messages: leave it out, or compile only parts of the model without "
                    "layers of hpcgnn"
                )
        modules = list(self.modules[""].named_modules())
        of_pyg = [(name, module) for name, module in modules if _is_of_pyg(module)]
        if of_pyg and not any(_is_ours(module) for _, module in modules):
            name, kind = of_pyg[0][0] or "module", type(of_pyg[0][1]).__name__
            raise InputError(
                f"the model's {name} is PyTorch Geometric's {kind}, which reads no other rank's "
                f"nodes: import {kind} from hpcgnn.nn.pyg"
            )

    def _loose(self) -> list[str]:
        """Return the attributes that require gradients but aren't among the parameters."""
        known = {id(parameter) for parameter in self.parameters()}
        found = []
        for prefix, module in self.modules.items():
            for place, inner in module.named_modules():
                for name, value in vars(inner).items():
                    if name in _OF_TORCH:
                        continue
                    if any(id(one) not in known for one in _trainable(value)):
                        found.append(prefix + (f"{place}.{name}" if place else name))
        return found

    def _note_frozen(self, comm: Communicator) -> None:
        """Print the names of parameters that don't require gradients, if there are any."""
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        if frozen and comm.rank == 0:
            say(f"note: requires_grad is False for {some(frozen)}: not trained")

    @torch.no_grad()
    def take_from_first(self, comm: Communicator) -> bool:
        """Copy rank 0's values, except sharded rows, to all ranks; return whether any differed.

        Collective.
        """
        sharded = self.sharded_names()
        own = {name: value for name, value in self.state_dict().items() if name not in sharded}
        if comm.size == 1:
            return False
        changed = self._take_numbers(comm)
        for value in own.values():
            mine = value.detach().cpu().numpy()
            first: np.ndarray = comm.broadcast(mine if comm.rank == 0 else None, where="weights")
            if not np.array_equal(first, mine, equal_nan=mine.dtype.kind == "f"):
                changed = True
                value.copy_(torch.from_numpy(np.array(first)).to(value.device))
        return bool(comm.allreduce(int(changed), "max", where="weights"))

    def _take_numbers(self, comm: Communicator) -> bool:
        """Copy rank 0's layer numbers, which random masks depend on; return whether any differed.

        Collective.

        Raises:
            InputError: the ranks have different numbers of layers with random masks.
        """
        drawn = [module for model in self.modules.values() for module in numbered(model)]
        require_same(comm, {"layers with random masks": len(drawn)}, "models")
        numbers = [module.layer for module in drawn]
        first: list[int] = comm.broadcast(numbers, where="layer numbers")
        for module, number in zip(drawn, first, strict=True):
            module.layer = number
        return first != numbers

    def check_complete(self, known: Iterable[Tensor]) -> None:
        """Check, after the first pass, that the model has made no parameters besides `known`.

        Raises:
            InputError: it has; they differ between ranks, and no optimizer has them.
        """
        there = {id(parameter) for parameter in known}
        late = [name for name, parameter in self.named_parameters() if id(parameter) not in there]
        if late:
            raise InputError(
                f"the model made {some(late)} in its first pass, so nothing would train it: make "
                "all parameters before the Trainer is made, such as in __init__"
            )

    def note_unused(self, comm: Communicator) -> None:
        """Print, after the first backward pass, parameters it reached on no rank; collective."""
        mine = {n for n, p in self.named_parameters() if p.requires_grad and p.grad is None}
        unused_P = comm.allgather(mine, where="unused parameters")
        unused = sorted(set.intersection(*unused_P))
        if unused and comm.rank == 0:
            say(f"note: the loss doesn't depend on {some(unused)}: not trained")


def _is_ours(module: torch.nn.Module) -> bool:
    return any(kind.__module__.startswith("hpcgnn.nn.") for kind in type(module).__mro__)


def _is_of_pyg(module: torch.nn.Module) -> bool:
    place = "torch_geometric.nn.conv.message_passing"
    return any(kind.__module__ == place for kind in type(module).__mro__)


_OF_TORCH = frozenset(vars(torch.nn.Module()))  # attributes of every module


def _trainable(value: object) -> Iterator[Tensor]:
    """Yield leaves that require gradients, in a tensor, a module or a plain container of these."""
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif isinstance(value, torch.nn.Module):
        yield from (parameter for parameter in value.parameters() if parameter.requires_grad)
    elif isinstance(value, list | tuple | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            if not isinstance(entry, list | tuple | dict):
                yield from _trainable(entry)


def some(names: list[str]) -> str:
    """Return the first of these names, and the number of the others."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
