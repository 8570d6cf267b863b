"""What is learned: targets, loss, metrics."""

from hpcgnn.tasks.build import find_task
from hpcgnn.tasks.classes import MultiClass
from hpcgnn.tasks.decoders import DotProduct, PairMLP
from hpcgnn.tasks.edges import EdgeTask
from hpcgnn.tasks.labels import MultiLabel
from hpcgnn.tasks.links import LinkPrediction
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
