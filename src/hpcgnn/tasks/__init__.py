"""What is learned: the targets, loss and metrics of tasks.

Names are imported at first use, since settings of tasks are read before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcgnn.tasks.build import find_task
    from hpcgnn.tasks.classes import MultiClass, MultiLabel
    from hpcgnn.tasks.edges import EdgeTask
    from hpcgnn.tasks.links import LinkPrediction
    from hpcgnn.tasks.pairs import DotProduct, PairMLP
    from hpcgnn.tasks.task import Task, TaskDefaults, as_task
    from hpcgnn.tasks.values import Regression

__all__ = [
    "DotProduct",
    "EdgeTask",
    "LinkPrediction",
    "MultiClass",
    "MultiLabel",
    "PairMLP",
    "Regression",
    "Task",
    "TaskDefaults",
    "as_task",
    "find_task",
]

_MODULES = {
    "DotProduct": "pairs",
    "EdgeTask": "edges",
    "LinkPrediction": "links",
    "MultiClass": "classes",
    "MultiLabel": "classes",
    "PairMLP": "pairs",
    "Regression": "values",
    "Task": "task",
    "TaskDefaults": "task",
    "as_task": "task",
    "find_task": "build",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"hpcgnn.tasks.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'hpcgnn.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
