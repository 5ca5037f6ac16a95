"""Which statements of a module are executed: its code, with a note before every statement of a function.

Only the module itself gets slower, and only a little: a tracer would slow down everything else too, and would be in the
way of a debugger's.
"""

from __future__ import annotations

import ast
from types import CodeType

NOTE = "__executed__"
"""The global of the module that is called with the first line of a statement before it is executed."""


def with_notes(source: str, path: str) -> CodeType:
    """The code of a module whose functions call `__executed__(line)` before each of their statements.

    The global is set before the code runs; see `Sandbox.changed`.
    """
    tree = ast.parse(source, path)
    _add_notes(tree, in_function=False)
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _add_notes(node: ast.AST, in_function: bool) -> None:
    in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for name, value in ast.iter_fields(node):
        if not isinstance(value, list):
            continue
        for child in value:
            if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
                _add_notes(child, in_function)
        if in_function and value and all(isinstance(child, ast.stmt) for child in value):
            noted = [item for statement in value for item in (_note(statement), statement)]
            setattr(node, name, noted[1:] if _is_text(value[0]) else noted)


def _note(statement: ast.stmt) -> ast.stmt:
    call = ast.Call(ast.Name(NOTE, ast.Load()), [ast.Constant(statement.lineno)], [])
    return ast.copy_location(ast.Expr(call), statement)


def _is_text(statement: ast.stmt) -> bool:
    """Whether this may be a docstring, which has to stay the first statement."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
