"""Libraries to compare with that take seconds to load: loaded where they are first used."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Late(ModuleType):
    """Stands for the module of its name, which every process that collects tests would load."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks every object of a file for such names
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)
