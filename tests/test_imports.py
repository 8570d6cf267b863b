"""The package's structure: imports point downward only, without cycles; class names are unique."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "hpcgnn"
# From the top down; a folder may use those below it. Names in one line are on the same level.
ROOMS = [
    {"__init__"},
    {"__main__"},
    {"cli"},
    {"pyparmetis"},
    {"bench", "report"},
    {"train"},
    {"tasks", "models"},
    {"nn"},
    {"sar"},
    {"partition"},
    {"storage"},
    {"graph"},
    {"comm"},
    {"kernels"},
    {"settings", "native", "loading"},
    {"display", "errors", "sorting", "system", "timeline", "version"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def module_of(path: Path) -> str:
    parts = ("hpcgnn", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imports(module: str) -> set[str]:
    """Return our modules that `module` imports, including for types and inside functions."""
    found = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in whole if name in MODULES} or {node.module}
    return {name for name in found if name in MODULES} - {module}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_package_has_a_level():
    assert {room_of(module) for module in MODULES} <= LEVEL.keys()


def test_imports_point_downward():
    upward = {
        f"{module} -> {name}"
        for module in MODULES.keys() - {"hpcgnn"}  # the public names, from any room
        for name in imports(module)
        if room_of(name) != room_of(module) and LEVEL[room_of(name)] <= LEVEL[room_of(module)]
    }
    assert not upward


def test_there_are_no_import_cycles():
    graph = {module: imports(module) for module in MODULES if module != "hpcgnn"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_module_has_the_name_of_a_folder_beside_it():
    folders = {path for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not {path for path in folders if path.with_suffix(".py").exists()}


def test_no_private_name_is_imported():
    private = {
        f"{module}: {node.module}.{alias.name}"
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpcgnn")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    }
    assert not private


def test_no_public_class_name_exists_twice():
    modules_of = defaultdict(list)
    for module in MODULES:
        for node in nodes(module):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules_of[node.name].append(module)
    assert not {name: found for name, found in modules_of.items() if len(found) > 1}
