"""The mutants of a source text: every single change that an operator makes, outside of what is noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider

from conformance.audit.noise import Noise
from conformance.audit.operators import operators


@dataclass(frozen=True)
class Mutant:
    """One change in one module.

    Attributes:
        module: dotted name of the module.
        file: its path, as it is shown.
        line: where the change begins, from 1.
        function: qualified name of the function or class around it; empty at the top level.
        operator: what made it.
        before, after: the changed source lines, stripped.
        lines: first and last line of the statement (of a compound one: of its head).
        at_import: whether the statement runs when the module is imported, rather than in a call.
        span: the bytes of the UTF-8 source that `replacement` takes the place of.
    """

    module: str
    file: str
    line: int
    function: str
    operator: str
    before: str
    after: str
    lines: tuple[int, int]
    at_import: bool
    span: tuple[int, int] = field(repr=False)
    replacement: str = field(repr=False)

    def source(self, original: str) -> str:
        """The source text with the change."""
        start, stop = self.span
        data = original.encode()
        return (data[:start] + self.replacement.encode() + data[stop:]).decode()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def mutants_of(source: str, module: str, file: str, root: str | None = None) -> list[Mutant]:
    """All mutants of a module's source, in the order of the text; each of them compiles and differs from the source.

    Args:
        root: the class that is audited; see `Noise`.

    Raises:
        KeyError: the module does not define `root`.
        SyntaxError: the source does not parse.
    """
    try:
        tree = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise SyntaxError(f"{file}: {error}") from None
    return list(_Mutation(source, module, file, tree, root).mutants())


@dataclass(frozen=True)
class _Place:
    """Where a node is: the statement and function around it."""

    lines: tuple[int, int] = (1, 1)
    scope: tuple[str, ...] = ()
    in_function: bool = False


class _Mutation:
    def __init__(self, source: str, module: str, file: str, tree: cst.Module, root: str | None) -> None:
        wrapper = MetadataWrapper(tree, unsafe_skip_copy=True)
        self._spans = wrapper.resolve(ByteSpanPositionProvider)
        self._positions = wrapper.resolve(PositionProvider)
        self._tree, self._noise = tree, Noise(tree, root)
        self._source, self._data = source, source.encode()
        self._module, self._file = module, file
        self._seen: set[tuple[int, int, str]] = set()

    def mutants(self) -> Iterator[Mutant]:
        for statement in self._tree.body:
            yield from self._walk(statement, _Place())

    def _walk(self, node: cst.CSTNode, place: _Place) -> Iterator[Mutant]:
        if self._noise.skips(node):
            return
        if isinstance(node, (cst.BaseStatement, cst.BaseCompoundStatement)):
            place = _Place(self._head(node), place.scope, place.in_function)
        for operator in operators():
            if isinstance(node, operator.kind):
                for replacement in operator.mutate(node):
                    yield from self._mutant(operator.name, node, replacement, place)
        for child in self._inside(node):
            yield from self._walk(child, self._entered(node, child, place))

    def _inside(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """Children that can be mutated: no names of arguments, attributes, functions and classes."""
        for child in node.children:
            named = isinstance(node, (cst.Arg, cst.Param, cst.FunctionDef, cst.ClassDef, cst.Attribute))
            if named and child in (
                getattr(node, "keyword", None),
                getattr(node, "name", None),
                getattr(node, "attr", None),
            ):
                continue
            yield child

    def _entered(self, node: cst.CSTNode, child: cst.CSTNode, place: _Place) -> _Place:
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)) and child is node.body:
            called = place.in_function or isinstance(node, cst.FunctionDef)
            return _Place(place.lines, (*place.scope, node.name.value), called)
        return place

    def _head(self, node: cst.CSTNode) -> tuple[int, int]:
        position = self._positions[node]
        body = getattr(node, "body", None)
        if isinstance(body, cst.BaseSuite):
            first_inside = self._positions[body.body[0]].start.line
            return position.start.line, max(position.start.line, first_inside - 1)
        return position.start.line, position.end.line

    def _mutant(self, operator: str, old: cst.CSTNode, new: cst.CSTNode, place: _Place) -> Iterator[Mutant]:
        old, new = _narrowed(old, new)
        if isinstance(old, cst.Call) and isinstance(new, cst.Call) and self._changes_noise(old, new):
            return
        if isinstance(old, cst.BaseExpression) and isinstance(new, type(old)) and new.lpar is old.lpar:
            new = new.with_changes(lpar=(), rpar=())  # the span is inside of the node's own parentheses
        start = self._spans[old].start
        span = (start, start + self._spans[old].length)
        replacement = self._tree.code_for_node(new).strip()
        if (*span, replacement) in self._seen or self._data[span[0] : span[1]].decode() == replacement:
            return
        self._seen.add((*span, replacement))
        changed = (self._data[: span[0]] + replacement.encode() + self._data[span[1] :]).decode()
        line, before, after = _difference(self._source, changed)
        try:
            compile(changed, self._file, "exec", dont_inherit=True)
        except SyntaxError:  # such as a `*` argument without names after it
            return
        yield Mutant(
            self._module, self._file, line, ".".join(place.scope), operator, before, after, place.lines,
            not place.in_function, span, replacement,
        )  # fmt: skip

    def _changes_noise(self, old: cst.Call, new: cst.Call) -> bool:
        """Whether an argument that is left alone is changed or missing in the new call."""
        kept = {id(argument) for argument in new.args}
        return any(self._noise.skips(argument) and id(argument) not in kept for argument in old.args)


def _narrowed(old: cst.CSTNode, new: cst.CSTNode) -> tuple[cst.CSTNode, cst.CSTNode]:
    """The smallest pair of nodes that makes the same change."""
    while type(old) is type(new):
        changed = [
            (getattr(old, name), getattr(new, name))
            for name in old.__dataclass_fields__
            if getattr(old, name) is not getattr(new, name)
        ]
        if len(changed) != 1 or not all(isinstance(value, cst.CSTNode) for value in changed[0]):
            break
        old, new = changed[0]
    return old, new


def _difference(old: str, new: str) -> tuple[int, str, str]:
    """Number of the first line that differs, and the differing lines of both texts, stripped."""
    a, b = old.split("\n"), new.split("\n")
    shorter = min(len(a), len(b))
    first = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    last = next((i for i in range(shorter - first) if a[-1 - i] != b[-1 - i]), shorter - first)
    before, after = a[first : len(a) - last], b[first : len(b) - last]
    return first + 1, *("\n".join(line.strip() for line in lines) for lines in (before, after))  # type: ignore[return-value]
