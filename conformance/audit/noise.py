"""What is never mutated, because no number depends on it: declarations, annotations, and the wording of errors.

- docstrings, annotations, decorators, imports, `TypeVar`s and type aliases, `__all__`, `if TYPE_CHECKING`;
- `raise`, `assert`, warnings and log messages, blocks that do nothing but prepare and raise an error, and functions
  that only such places use. Conditions of these blocks are mutated: what is refused, and what not, is behaviour;
- `strict=` of zip and formatted strings, which are assertions and text;
- values of plain `Enum` members, which are told apart by identity (those of `str` or `int` enums are mutated).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import libcst as cst

TYPING_CALLS = frozenset({"TypeVar", "ParamSpec", "TypeVarTuple", "NewType"})
MESSENGERS = frozenset({"logger", "logging", "warnings", "deprecate", "print"})
GENERICS = frozenset({"Callable", "Iterable", "Literal", "Mapping", "Optional", "Sequence", "Union", "dict", "list"})
SKIPPED = (
    cst.Annotation,
    cst.Decorator,
    cst.Raise,
    cst.Assert,
    cst.Import,
    cst.ImportFrom,
    cst.Global,
    cst.Nonlocal,
    cst.FormattedString,
    cst.ConcatenatedString,
    cst.Comment,
)


class Noise:
    """Answers, for the nodes of one module, which are left alone.

    Args:
        root: class or function that is audited; what it does not use of its module, directly or through other
            definitions, is left alone too. None: the whole module.

    Raises:
        KeyError: the module has no definition `root`.
    """

    def __init__(self, module: cst.Module, root: str | None = None) -> None:
        self._left_out: set[int] = set()
        definitions = _definitions(module)
        if root is not None and root not in definitions:
            raise KeyError(root)
        used = None if root is None else _reachable(definitions, root)
        helpers = self._message_helpers(definitions, module)
        self._left_out = {
            id(node)
            for name, nodes in definitions.items()
            if name in helpers or (used is not None and name not in used)
            for node in nodes
        } | {id(node) for node in _plain_enum_members(module)}

    def skips(self, node: cst.CSTNode) -> bool:
        """Whether the node, with everything inside, is left alone."""
        if isinstance(node, SKIPPED) or id(node) in self._left_out:
            return True
        if isinstance(node, cst.Expr):
            return isinstance(node.value, (cst.SimpleString, cst.Ellipsis)) or _is_message(node.value)
        if isinstance(node, cst.BaseSuite):
            return _only_raises(node)
        if isinstance(node, cst.If):
            return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
        if isinstance(node, cst.Assign):
            return _declares_types(node)
        if isinstance(node, cst.Arg):
            return node.keyword is not None and node.keyword.value == "strict"
        return False

    def _message_helpers(self, definitions: dict[str, list[cst.CSTNode]], module: cst.Module) -> set[str]:
        """Functions and constants that only errors and messages use, directly or through one another."""
        everywhere, heard = Counter(_names(module)), Counter(self._names_in_messages(module))
        helpers: set[str] = set()
        for name, nodes in definitions.items():
            private = name.startswith("_") and not name.startswith("__")
            own = sum(Counter(_names(node))[name] for node in nodes)
            if private and heard[name] and heard[name] == everywhere[name] - own:
                helpers.add(name)
        return helpers

    def _names_in_messages(self, node: cst.CSTNode) -> Iterator[str]:
        if self.skips(node) and not isinstance(node, (cst.Annotation, cst.Decorator)):
            yield from _names(node)
            return
        for child in node.children:
            yield from self._names_in_messages(child)


def _plain_enum_members(module: cst.Module) -> Iterator[cst.CSTNode]:
    for statement in module.body:
        if isinstance(statement, cst.ClassDef) and isinstance(statement.body, cst.IndentedBlock):
            bases = [base.value.value for base in statement.bases if isinstance(base.value, cst.Name)]
            if bases == ["Enum"] and len(statement.bases) == 1:
                for line in statement.body.body:
                    if isinstance(line, cst.SimpleStatementLine):
                        yield from (small for small in line.body if isinstance(small, cst.Assign))


def _definitions(module: cst.Module) -> dict[str, list[cst.CSTNode]]:
    """Names defined at the top level -> the statements that define them."""
    found: dict[str, list[cst.CSTNode]] = {}
    for statement in module.body:
        if isinstance(statement, (cst.FunctionDef, cst.ClassDef)):
            found.setdefault(statement.name.value, []).append(statement)
        elif isinstance(statement, cst.SimpleStatementLine):
            for small in statement.body:
                targets = [item.target for item in small.targets] if isinstance(small, cst.Assign) else []
                targets += [small.target] if isinstance(small, cst.AnnAssign) else []
                for target in targets:
                    if isinstance(target, cst.Name):
                        found.setdefault(target.value, []).append(statement)
    return found


def _reachable(definitions: dict[str, list[cst.CSTNode]], root: str) -> set[str]:
    used, waiting = {root}, [root]
    while waiting:
        for node in definitions[waiting.pop()]:
            for name in _names(node):
                if name in definitions and name not in used:
                    used.add(name)
                    waiting.append(name)
    return used


def _names(node: cst.CSTNode) -> Iterator[str]:
    if isinstance(node, cst.Name):
        yield node.value
    for child in node.children:
        yield from _names(child)


def _only_raises(suite: cst.BaseSuite) -> bool:
    """Whether a block prepares an error and raises it, or is nothing but messages."""
    simple: list[cst.BaseSmallStatement] = []
    for statement in suite.body:
        if isinstance(statement, cst.SimpleStatementLine):
            simple += statement.body
        elif isinstance(statement, cst.BaseSmallStatement):
            simple.append(statement)
        else:
            return False
    return isinstance(simple[-1], cst.Raise) if simple else False


def _is_message(value: cst.BaseExpression) -> bool:
    while isinstance(value, (cst.Call, cst.Attribute)):
        value = value.func if isinstance(value, cst.Call) else value.value
    return isinstance(value, cst.Name) and value.value in MESSENGERS


def _declares_types(node: cst.Assign) -> bool:
    """`__all__`, a TypeVar, or a type alias: a union or subscript of names."""
    if any(isinstance(item.target, cst.Name) and item.target.value == "__all__" for item in node.targets):
        return True
    value = node.value
    if isinstance(value, cst.Call):
        return isinstance(value.func, cst.Name) and value.func.value in TYPING_CALLS
    if isinstance(value, cst.BinaryOperation):
        return isinstance(value.operator, cst.BitOr) and all(map(_names_a_type, (value.left, value.right)))
    return isinstance(value, cst.Subscript) and _names_a_type(value)


def _names_a_type(value: cst.BaseExpression) -> bool:
    if isinstance(value, cst.BinaryOperation):
        return isinstance(value.operator, cst.BitOr) and all(map(_names_a_type, (value.left, value.right)))
    if isinstance(value, cst.Subscript):
        named = isinstance(value.value, cst.Name) and value.value.value
        return named in (
            "Callable",
            "Sequence",
            "Mapping",
            "Union",
            "Optional",
            "Literal",
            "Iterable",
            "list",
            "dict",
            "tuple",
        )
    return isinstance(value, (cst.Name, cst.Attribute))
