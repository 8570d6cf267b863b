"""Module variables are never changed: no function modifies them or uses `global`."""

from __future__ import annotations

import ast

import pytest

from tests.test_imports import MODULES

CHANGING = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault"}
CHANGING |= {"update", "popitem", "sort", "appendleft"}


def changes(source: str) -> list[str]:
    """Return the lines in which a function changes a module variable."""
    tree = ast.parse(source)
    named = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found = [f"{node.lineno}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            own = own_names(function)
            for node in ast.walk(function):
                if (name := changed_by(node)) in named and name not in own:
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def own_names(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    names = {one.arg for one in (*arguments.args, *arguments.kwonlyargs, *arguments.posonlyargs)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def changed_by(node: ast.AST) -> str | None:
    """Return the name that is assigned into, or on which a changing method is called."""
    target: ast.AST | None = None
    if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
        target = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        target = node.func.value if node.func.attr in CHANGING else None
    while isinstance(target, ast.Subscript | ast.Attribute):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None


def test_no_function_changes_module_state():
    found = {module: changes(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    assert not {module: lines for module, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("KEPT[1] = 2", 1),
        ("KEPT.x.y = 2", 1),
        ("KEPT.setdefault(1, 2)", 1),
        ("del KEPT[1]", 1),
        ("global KEPT; KEPT = 3", 1),
        ("KEPT = {}; KEPT[1] = 2", 0),
        ("return KEPT[1]", 0),
    ],
)
def test_changes_of_module_state_are_detected(line, count):
    assert len(changes(f"KEPT = {{}}\ndef f():\n    {line}\n")) == count
