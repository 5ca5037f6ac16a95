"""Running a changed module as the real one: imported under its own name, in memory, and put back afterwards.

A module that is changed is executed anew, and so is every module between it and the audited classes; other modules of
the same packages that hold one of their classes or functions get the new one for the time being. Nothing is written to
disk, and `sys.modules` is afterwards what it was.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from conformance.errors import ConformanceError


def source_of(module: ModuleType) -> tuple[str, str]:
    """Text and path of a module's source.

    Raises:
        ConformanceError: it has none that can be read (a builtin, an extension, a namespace).
    """
    path = getattr(module, "__file__", None)
    if path is None or not path.endswith(".py"):
        raise ConformanceError(f"{module.__name__}: has no Python source that could be mutated")
    return Path(path).read_text(encoding="utf-8"), path


@dataclass(frozen=True)
class _Held:
    """A global of a module that is not executed anew, whose value is defined in one that is."""

    holder: ModuleType
    name: str
    module: str
    attribute: str


class Sandbox:
    """Gives audited classes as they are when the code of a module is another.

    Args:
        roots: names of the modules that define the audited classes; imported already.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = list(roots)
        self._packages = {name.partition(".")[0] for name in roots}
        self._imports: dict[str, set[str]] = {}
        self._affected: dict[str, list[str]] = {}
        self._codes: dict[str, CodeType] = {}

    def affected(self, module: str) -> list[str]:
        """The changed module and those between it and the audited classes, sorted."""
        if module not in self._affected:
            self._packages.add(module.partition(".")[0])
            self._affected[module] = sorted(name for name in self._reachable() if self._reaches(name, module))
        return self._affected[module]

    @contextmanager
    def changed(
        self, codes: Mapping[str, CodeType], extra: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Iterator[Mapping[str, ModuleType]]:
        """While the context lasts, the modules named in `codes` are what their code makes of them.

        Args:
            extra: for a module, globals that it has before its code runs.

        Yields the modules that were executed anew. Raises whatever they raise when they are imported.
        """
        affected = sorted({name for module in codes for name in self.affected(module)})
        before = dict(sys.modules)
        held = list(self._held(affected))
        parents = [(parent, name) for parent, name in map(self._parent, affected) if parent is not None]
        attributes = [(parent, name, getattr(parent, name, None)) for parent, name in parents]
        prepared = {name: codes[name] if name in codes else self._code(name) for name in affected}
        finder = _Finder({name: before[name].__spec__ for name in affected}, prepared, extra or {})
        try:
            for name in affected:
                del sys.modules[name]
            sys.meta_path.insert(0, finder)
            fresh = {name: importlib.import_module(name) for name in affected}
            for item in held:
                if (value := getattr(fresh[item.module], item.attribute, None)) is not None:
                    setattr(item.holder, item.name, value)
            yield fresh
        finally:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
            for item in held:
                setattr(item.holder, item.name, getattr(before[item.module], item.attribute))
            # What was first imported meanwhile may hold changed classes, so it is forgotten.
            for name in [name for name in sys.modules if name not in before and self._ours(name)]:
                self._forget(name)
            for name in affected:
                sys.modules[name] = before[name]
            for parent, name, value in attributes:
                if value is not None:
                    setattr(parent, name, value)

    def _code(self, name: str) -> CodeType:
        if name not in self._codes:
            source, path = source_of(sys.modules[name])
            self._codes[name] = compile(source, path, "exec", dont_inherit=True)
        return self._codes[name]

    def _ours(self, name: str) -> bool:
        return name.partition(".")[0] in self._packages

    def _forget(self, name: str) -> None:
        parent, attribute = self._parent(name)
        del sys.modules[name]
        if parent is not None and attribute in vars(parent):
            delattr(parent, attribute)

    @staticmethod
    def _parent(name: str) -> tuple[ModuleType | None, str]:
        package, _, attribute = name.rpartition(".")
        return sys.modules.get(package), attribute

    def _held(self, affected: Sequence[str]) -> Iterator[_Held]:
        """Globals elsewhere that are classes or functions of the affected modules."""
        owner: dict[int, tuple[str, str]] = {}
        for name in affected:
            for attribute, value in vars(sys.modules[name]).items():
                if getattr(value, "__module__", None) == name and (isinstance(value, type) or callable(value)):
                    owner[id(value)] = (name, attribute)
        for name, module in list(sys.modules.items()):
            if self._ours(name) and name not in affected and isinstance(module, ModuleType):
                for key, value in list(vars(module).items()):
                    if id(value) in owner:
                        yield _Held(module, key, *owner[id(value)])

    # --- who imports whom --------------------------------------------------------------------------------------------

    def _reachable(self) -> set[str]:
        found, waiting = set(self._roots), list(self._roots)
        while waiting:
            for name in self._imported_by(waiting.pop()):
                if name not in found:
                    found.add(name)
                    waiting.append(name)
        return found

    def _reaches(self, name: str, goal: str) -> bool:
        found, waiting = {name}, [name]
        while waiting:
            name = waiting.pop()
            if name == goal:
                return True
            new = self._imported_by(name) - found
            found |= new
            waiting += new
        return False

    def _imported_by(self, name: str) -> set[str]:
        """Loaded modules of the same packages that a module imports while it is itself imported."""
        if name not in self._imports:
            module = sys.modules[name]
            self._imports[name] = {item for item in _imports(module) if item in sys.modules and self._ours(item)}
        return self._imports[name]


def _imports(module: ModuleType) -> set[str]:
    try:
        tree = ast.parse(source_of(module)[0])
    except ConformanceError:
        return set()
    package = module.__package__ or ""
    found: set[str] = set()
    for node in _at_import(tree):
        if isinstance(node, ast.Import):
            found.update(item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base]) if base else ".".join(parts)
            found.add(base)
            found.update(f"{base}.{item.name}" for item in node.names)
    return found - {module.__name__}


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside of function bodies."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _at_import(child)


class _Finder(MetaPathFinder, Loader):
    """Finds the affected modules, and executes prepared code for them."""

    def __init__(
        self,
        specs: Mapping[str, ModuleSpec | None],
        codes: Mapping[str, CodeType],
        extra: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._specs, self._codes, self._extra = specs, codes, extra

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        old = self._specs.get(fullname)
        if old is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, old.origin, loader=self, submodule_search_locations=old.submodule_search_locations
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._extra.get(module.__name__, {}))
        exec(self._codes[module.__name__], vars(module))
