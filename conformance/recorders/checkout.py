"""An original's checkout: which commit it is at, and importing from it without changing anything in it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

from conformance.errors import ConformanceError
from conformance.fixture import Paper, Reference


@dataclass(frozen=True)
class Original:
    """What a recorder pins: the code base, the commit it was written against, and the paper."""

    system: str
    repository: str
    commit: str
    licence: str
    paper_title: str
    arxiv: str

    def paper(self, location: str) -> Paper:
        return Paper(self.paper_title, self.arxiv, location)

    def reference(
        self,
        commit: str,
        modified: bool,
        functions: Iterable[str],
        changes: Iterable[str],
        lifted: Iterable[str],
        float32_parts: Iterable[str] = (),
    ) -> Reference:
        return Reference(
            self.repository,
            commit,
            modified,
            self.licence,
            list(functions),
            list(changes),
            list(lifted),
            list(float32_parts),
        )


def inspect_checkout(source: Path, original: Original, allow_modified: bool) -> tuple[str, bool]:
    """The checkout's commit and whether it differs from the pinned, clean state.

    Raises:
        ConformanceError: not a git checkout, or another commit or local changes without `allow_modified`.
    """
    if not source.is_dir():
        raise ConformanceError(f"{source}: no such checkout of {original.repository}")
    commit = _git(source, "rev-parse", "HEAD")
    status = _git(source, "status", "--porcelain", "--untracked-files=all").splitlines()
    # The checkout is first on the import path: an untracked module could stand in for one that the original imports.
    status = [line for line in status if not line.startswith("??") or line.endswith(".py")]
    problems = []
    if commit != original.commit:
        problems.append(f"it is at commit {commit}, the recorder is written against {original.commit}")
    if status:
        problems.append(f"it has local changes ({status[0].strip()} …)")
    if problems and not allow_modified:
        raise ConformanceError(
            f"{source}: {'; '.join(problems)}. Pass --allow-modified to record all the same; the manifest will say so."
        )
    return commit, bool(problems)


@contextmanager
def importing(source: Path, modules: Iterable[str], stubs: Iterable[str] = ()) -> Iterator[list[ModuleType]]:
    """Import `modules` from the checkout, with `stubs` (missing third-party imports) replaced; undone afterwards.

    The originals use names such as `models` or `functions`, so everything imported from the checkout leaves
    `sys.modules` again. No byte code is written into the checkout.
    """
    before = dict(sys.modules)
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(source))
    try:
        for name in stubs:
            sys.modules[name] = MagicMock(name=name)
        yield [importlib.import_module(name) for name in modules]
    finally:
        sys.path.remove(str(source))
        sys.dont_write_bytecode = write_bytecode
        for name in stubs:
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name not in before and isinstance(file, str) and Path(file).is_relative_to(source):
                del sys.modules[name]


def widened(module: ModuleType, name: str) -> AbstractContextManager[Any]:
    """For a float64 run: the float32 tensor that `module.name` returns is handed out as float64."""
    function = getattr(module, name)
    return patch.object(module, name, lambda *arguments, **options: function(*arguments, **options).double())


def _git(source: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ConformanceError(f"{source}: not a git checkout ({result.stderr.strip()})")
    return result.stdout.strip()
