"""What is learned: targets, loss, metrics."""

from hpcgnn.tasks.classes import MultiClass, MultiLabel
from hpcgnn.tasks.task import Task, TaskDefaults, as_task

__all__ = ["MultiClass", "MultiLabel", "Task", "TaskDefaults", "as_task"]
