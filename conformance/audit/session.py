"""An audit: the mutants of one or more classes and their helpers, each held against the checks that execute it."""

from __future__ import annotations

import importlib
import math
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from conformance.audit.checks import Check, Memory, checks_for
from conformance.audit.coverage import NOTE, with_notes
from conformance.audit.limit import TooLong, time_limit
from conformance.audit.mutants import Mutant, mutants_of
from conformance.audit.sandbox import Sandbox, source_of
from conformance.errors import ConformanceError
from conformance.implementations.user_class import load_class
from conformance.library import open_library

LEAST_SECONDS = 5.0
"""A check may take this long, or SLOWER times what it took on the class itself, before a mutant counts as hanging."""
SLOWER = 20.0


@dataclass(frozen=True)
class Request:
    """What is audited, and with what.

    Attributes:
        subjects: classes, as `path/to/file.py:Class` or `package.module:Class`.
        helpers: modules that they use and that are mutated too, as a path or dotted name.
        checks: kinds of checks, of "fixtures" and "contracts".
        fixtures: fixture library; None for the one of the package.
    """

    subjects: tuple[str, ...]
    helpers: tuple[str, ...] = ()
    checks: tuple[str, ...] = ("fixtures", "contracts")
    fixtures: str | None = None


@dataclass
class Baseline:
    """What a check says about a class that is not mutated.

    Attributes:
        lines: for each audited module, the first lines of the statements that it executes.
    """

    outcome: str
    seconds: float
    lines: dict[str, frozenset[int]]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        killed: whether something noticed it.
        by: "fixtures", "contracts", "import" (the module cannot be imported) or "time" (a check does not end).
        check: the check that noticed it.
        detail: the check's outcome on the mutant.
        tried: how many checks were run on it; 0 for a survivor that no check executes.
        seconds: processor time that this took.
    """

    mutant: Mutant
    killed: bool
    by: str = ""
    check: str = ""
    detail: str = ""
    tried: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        data = asdict(self)
        mutant = data.pop("mutant")
        shown = ("module", "file", "line", "function", "operator", "before", "after")
        return {name: mutant[name] for name in shown} | data


@dataclass
class _Record:
    """Mutants that a check has killed, and seconds it took so far. The more it kills a second, the earlier it comes."""

    kills: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.kills / max(self.seconds, 1e-4)


@dataclass(frozen=True)
class _Subject:
    location: str
    cls: type
    checks: list[Check]


@dataclass
class Audit:
    """The classes with their checks: `prepare` (or `adopt`) first, then `judge` any of the `mutants`."""

    request: Request
    subjects: list[_Subject]
    modules: dict[str, str | None]
    sandbox: Sandbox
    baseline: dict[tuple[int, int], Baseline] = field(default_factory=dict)
    records: dict[tuple[int, int], _Record] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> Audit:
        """Load what is audited.

        Raises:
            ConformanceError: no such class or module, a module without source or unused by the classes, unknown checks.
        """
        if not request.subjects:
            raise ConformanceError("nothing to audit; name a class: path/to/file.py:Class or package.module:Class")
        library = open_library(request.fixtures)
        classes = [load_class(location) for location in request.subjects]
        subjects = [
            _Subject(location, loaded, checks_for(loaded, request.checks, library))
            for location, loaded in zip(request.subjects, classes, strict=True)
        ]
        sandbox = Sandbox([loaded.__module__ for loaded in classes])
        modules: dict[str, str | None] = {loaded.__module__: loaded.__name__ for loaded in classes}
        for helper in request.helpers:
            name = _module_name(helper)
            if name not in modules:
                modules[name] = None
                if not sandbox.affected(name):
                    raise ConformanceError(f"--with {helper}: {', '.join(request.subjects)} does not import it")
        return cls(request, subjects, modules, sandbox)

    def prepare(self) -> list[str]:
        """Run every check on the classes as they are, with the lines it executes. Returns what is left out and why.

        Raises:
            ConformanceError: no check is left.
        """
        lines: dict[str, set[int]] = {name: set() for name in self.modules}
        left_out: dict[tuple[str, str], list[str]] = {}
        codes = {name: with_notes(*source_of(sys.modules[name])) for name in self.modules}
        notes = {name: {NOTE: lines[name].add} for name in self.modules}
        with self.sandbox.changed(codes, notes) as modules, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for s, subject in enumerate(self.subjects):
                cls = getattr(modules[subject.cls.__module__], subject.cls.__name__)
                for c, check in enumerate(subject.checks):
                    for found in lines.values():
                        found.clear()
                    start = time.process_time()
                    outcome = check.outcome(cls, {})
                    seconds = time.process_time() - start
                    if check.passes(outcome):
                        executed = {name: frozenset(found) for name, found in lines.items()}
                        self.baseline[s, c] = Baseline(outcome, seconds, executed)
                    else:
                        left_out.setdefault((subject.cls.__name__, outcome), []).append(check.name)
        if not self.baseline:
            raise ConformanceError(
                f"{', '.join(self.request.subjects)} passes none of the checks: nothing to audit with"
            )
        self.adopt(self.baseline)
        return [f"{name}, {outcome}: {', '.join(checks)}" for (name, outcome), checks in left_out.items()]

    def adopt(self, baseline: dict[tuple[int, int], Baseline]) -> None:
        """Take over what `prepare` found, here or in another process."""
        self.baseline = baseline
        self.records = {key: _Record(1, known.seconds) for key, known in baseline.items()}

    def mutants(self) -> list[Mutant]:
        """All mutants of the classes and their helpers."""
        found: list[Mutant] = []
        for name, root in self.modules.items():
            source, path = source_of(sys.modules[name])
            found += mutants_of(source, name, _shown(path), root)
        return found

    def judge(self, mutant: Mutant, at_most: float = math.inf) -> Verdict:
        """Hold one mutant against the checks that execute it, until one notices it.

        Args:
            at_most: seconds of processor time after which no further check is begun.
        """
        start = time.process_time()
        source, path = source_of(sys.modules[mutant.module])
        covering = self._covering(mutant)
        tried, noticed = 0, ("", "", "")
        if covering:
            with warnings.catch_warnings(), ExitStack() as stack:
                warnings.simplefilter("ignore")
                try:
                    with time_limit(LEAST_SECONDS):
                        code = compile(mutant.source(source), path, "exec", dont_inherit=True)
                        modules = stack.enter_context(self.sandbox.changed({mutant.module: code}))
                except TooLong:
                    noticed = ("time", "", "importing it does not end")
                except Exception as error:  # noqa: BLE001 - any failure at import is what the mutation did
                    noticed = ("import", "", f"{type(error).__name__}: {error}")
                else:
                    tried, noticed = self._hold(covering, modules, start + at_most)
        by, check, detail = noticed
        return Verdict(mutant, bool(by), by, check, detail, tried, time.process_time() - start)

    def _hold(
        self, covering: Sequence[tuple[int, int]], modules: Mapping[str, ModuleType], deadline: float
    ) -> tuple[int, tuple[str, str, str]]:
        """How many checks were run, and what the last one noticed: by, check and detail of a `Verdict`."""
        tried, memory = 0, Memory()
        for tried, key in enumerate(covering, start=1):
            subject, baseline, record = self.subjects[key[0]], self.baseline[key], self.records[key]
            check = subject.checks[key[1]]
            cls = getattr(modules[subject.cls.__module__], subject.cls.__name__)
            start = time.process_time()
            try:
                with time_limit(max(LEAST_SECONDS, SLOWER * baseline.seconds)):
                    outcome = check.outcome(cls, memory)
            except TooLong:
                return tried, ("time", check.name, "does not end")
            except Exception as error:  # noqa: BLE001 - the class cannot even be looked at
                return tried, (check.kind, check.name, f"{type(error).__name__}: {error}")
            finally:
                record.seconds += time.process_time() - start
            if check.notices(outcome, baseline.outcome):
                record.kills += 1
                return tried, (check.kind, check.name, outcome)
            if time.process_time() > deadline:
                break
        return tried, ("", "", "")

    def _covering(self, mutant: Mutant) -> list[tuple[int, int]]:
        """Checks that execute the mutant's lines, the most promising first."""
        first, last = mutant.lines
        affected = self.sandbox.affected(mutant.module)
        keys = [
            key
            for key, baseline in self.baseline.items()
            if self.subjects[key[0]].cls.__module__ in affected
            and (mutant.at_import or any(first <= line <= last for line in baseline.lines[mutant.module]))
        ]
        return sorted(keys, key=lambda key: (-self.records[key].rate, key))


def sample(mutants: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """`count` of the mutants, chosen by `seed`, in their order; all of them for None."""
    if count is None or count >= len(mutants):
        return list(mutants)
    chosen = sorted(random.Random(seed).sample(range(len(mutants)), count))
    return [mutants[index] for index in chosen]


def _module_name(helper: str) -> str:
    """The name of a loaded module, from its path or dotted name."""
    if not helper.endswith(".py"):
        try:
            return importlib.import_module(helper).__name__
        except ImportError as error:
            raise ConformanceError(f"--with {helper}: cannot be imported: {error}") from None
    path = Path(helper).resolve()
    if not path.is_file():
        raise ConformanceError(f"--with {helper}: no such file")
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve() == path:
            return name
    raise ConformanceError(f"--with {helper}: the audited classes do not import it")


def _shown(path: str) -> str:
    """A path relative to the working directory, if it is below."""
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(path).as_posix()
