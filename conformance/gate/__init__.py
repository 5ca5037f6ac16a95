"""The gate: did a change to an implementation move any number, where, by how much, and is it a divergence?

A baseline holds every output, bit for bit, of two kinds of cases: replays of fixtures, and probes, which are
deterministic runs of every scheduler class over pairs of its options.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from conformance.errors import ConformanceError
from conformance.expectations import Expectation, stale
from conformance.gate.baseline import Baseline, Case
from conformance.gate.judge import Change, Status, judge
from conformance.gate.probes import PREFIX, Probe, plan, run, scheduler_classes
from conformance.gate.workers import in_parallel
from conformance.implementations.base import Implementation
from conformance.library import Library, open_library
from conformance.replay import CaseResult, Settings, as_recorded, replay

TIER = "default"


@dataclass(frozen=True)
class Report:
    """A change held against a baseline."""

    baseline: Baseline
    changes: list[Change]
    warnings: list[str]
    complaints: list[str]

    def failing(self, strict: bool = False) -> list[Change]:
        """New divergences and cases that are gone; with `strict`, moved bits too."""
        red = (Status.DIVERGED, Status.GONE, *([Status.MOVED] if strict else []))
        return [change for change in self.changes if change.status in red]


def take(implementation: Implementation, settings: Settings, select: Sequence[str] = (), workers: int = 1) -> Baseline:
    """Run fixtures and freshly planned probes, and keep everything that comes out.

    Args:
        select: systems, case patterns, scheduler classes, or `probe`; nothing selects all samplers. Networks and
            pipelines are gated where they are named.
        workers: processes to run in.

    Raises:
        ConformanceError: a pattern matches nothing.
    """
    classes = scheduler_classes(implementation)
    chosen = [name for name in classes if _selected(name, select)]
    patterns = [pattern for pattern in select if not any(_names(pattern, name) for name in classes)]

    def work(task: _Task) -> dict[str, Case]:
        if task.fixture:
            return {task.fixture: _replayed(task.fixture, implementation, settings)}
        with as_recorded(1):
            probes = plan(task.cls, classes[task.cls])
            return {probe.id: _probed(probe, classes[task.cls], settings) for probe in probes}

    tasks = [_Task(fixture=name) for name in _slowest_first(_fixtures(open_library(), patterns, select))]
    tasks += [_Task(cls=name) for name in chosen]
    cases = {name: case for found in in_parallel(work, tasks, workers) for name, case in found.items()}
    return _baseline(implementation, settings, select, cases)


def hold(
    before: Baseline,
    implementation: Implementation,
    settings: Settings,
    select: Sequence[str] = (),
    expectations: Sequence[Expectation] = (),
    strict: bool = False,
    workers: int = 1,
) -> Report:
    """Run what the baseline ran and judge every case.

    Raises:
        ConformanceError: the baseline is of another implementation, device, dtype or selection.
    """
    warnings = _require_alike(before, implementation, settings, select)
    classes = scheduler_classes(implementation)
    known = set(open_library().ids())

    def work(task: _Task) -> list[Change]:
        if task.fixture:
            after = _replayed(task.fixture, implementation, settings) if task.fixture in known else None
            return [_judged(task.fixture, before.cases[task.fixture], after, settings)]
        cls = classes.get(task.cls)
        with as_recorded(1):
            return [
                _judged(name, case, None if cls is None else _probed(Probe(case.cls, case.choices), cls, settings),
                        settings)
                for name, case in before.cases.items()
                if case.cls == task.cls
            ]  # fmt: skip

    fixtures = [name for name, case in before.cases.items() if not case.cls]
    probed = dict.fromkeys(case.cls for case in before.cases.values() if case.cls)
    tasks = [_Task(fixture=name) for name in _slowest_first(fixtures)] + [_Task(cls=name) for name in probed]
    found = {change.id: change for changes in in_parallel(work, tasks, workers) for change in changes}
    changes = [found[name] for name in before.cases]
    new = [name for name in classes if name not in probed and _selected(name, select)]
    changes += [Change(f"{PREFIX}/{name}", Status.NEW, detail="not in the baseline") for name in new]
    changes = [_waived(change, expectations, strict) for change in changes]
    complaints = stale(expectations, [(change.id, change.status.value) for change in changes])
    return Report(before, changes, warnings, complaints)


@dataclass(frozen=True)
class _Task:
    """One fixture, or all probes of one scheduler class."""

    fixture: str = ""
    cls: str = ""


def _is_network(name: str) -> bool:
    return "/network-" in name or "/pipeline-" in name


def _slowest_first(fixtures: Sequence[str]) -> list[str]:
    """Pipelines and networks before samplers, so that no process is left alone with one at the end."""
    return sorted(fixtures, key=lambda name: ("pipeline" not in name, "network" not in name))


def _judged(name: str, case: Case, after: Case | None, settings: Settings) -> Change:
    title = Probe(case.cls, case.choices).title if case.cls else ""
    if after is None:
        detail = f"there is no {case.cls} any more" if case.cls else "there is no such fixture any more"
        return Change(name, Status.GONE, title, outputs=len(case.outputs), detail=detail)
    return dataclasses.replace(judge(name, case, after, settings.policy), title=title)


def _replayed(name: str, implementation: Implementation, settings: Settings) -> Case:
    result: CaseResult = replay(open_library().get(name), implementation, settings)
    outputs = {c.output: c.observed for c in result.comparisons if c.observed is not None}
    exact = [c.output for c in result.comparisons if c.level != "output" or c.output in ("seeded", "integers")]
    if not outputs and result.verdict.value == "error":
        return Case({"raises": result.message.split(":")[0]}, result.verdict.value)
    return Case(dict(outputs), result.verdict.value, tuple(exact))


def _probed(probe: Probe, cls: type, settings: Settings) -> Case:
    outputs = run(probe, cls, settings.dtype, settings.device)
    exact = tuple(name for name in outputs if name.startswith(("made.", "table.", "draws")))
    return Case(outputs, exact=exact, cls=probe.cls, choices=dict(probe.choices))


def _baseline(
    implementation: Implementation, settings: Settings, select: Sequence[str], cases: dict[str, Case]
) -> Baseline:
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    dtype = str(settings.dtype).removeprefix("torch.")
    return Baseline(implementation.name, implementation.version, settings.device, dtype, tuple(sorted(select)),
                    environment, cases)  # fmt: skip


def _require_alike(
    before: Baseline, implementation: Implementation, settings: Settings, select: Sequence[str]
) -> list[str]:
    """Raise if the baseline answers another question; warn if numbers can differ because of the machine."""
    here = _baseline(implementation, settings, select, {})
    asked = {
        "implementation": (_place(before.implementation), _place(here.implementation)),
        "device": (before.device, here.device),
        "dtype": (before.dtype, here.dtype),
        "selection": (" ".join(before.select) or "all cases", " ".join(here.select) or "all cases"),
    }
    for what, (old, new) in asked.items():
        if old != new:
            raise ConformanceError(f"the baseline's {what} is {old!r}, this run's is {new!r}")
    return [
        f"{what}: the baseline was taken with {old}, this is {here.environment.get(what)}; bits can move for that alone"
        for what, old in before.environment.items()
        if old != here.environment.get(what)
    ]


def _place(implementation: str) -> str:
    """A file of the user's, wherever it lies: a change is often checked out elsewhere than what it changes."""
    file, colon, cls = implementation.rpartition(":")
    return f"{Path(file).name}:{cls}" if colon and file.endswith(".py") else implementation


def _fixtures(library: Library, patterns: list[str], select: Sequence[str]) -> list[str]:
    """Ids of the selected fixtures of the default tier."""
    if select and not patterns:
        return []
    try:
        found = library.select(patterns, TIER)
        return found if patterns else [name for name in found if not _is_network(name)]
    except ConformanceError as error:
        raise ConformanceError(f"{error}; nor does it name scheduler classes (probe/<class>)") from None


def _selected(name: str, select: Sequence[str]) -> bool:
    return not select or any(_names(pattern, name) for pattern in select)


def _names(pattern: str, cls: str) -> bool:
    """Whether a pattern selects the probes of a scheduler class."""
    return pattern in (PREFIX, cls) or fnmatchcase(f"{PREFIX}/{cls}", pattern.removesuffix("/*"))


def _waived(change: Change, expectations: Sequence[Expectation], strict: bool) -> Change:
    if change.status not in (Status.DIVERGED, Status.GONE, *([Status.MOVED] if strict else [])):
        return change
    expected = next((entry for entry in expectations if entry.matches(change.id)), None)
    if expected is None:
        return change
    detail = f"waived ({expected.reason}); {change.status.value}: {change.detail}"
    return dataclasses.replace(change, status=Status.WAIVED, detail=detail)
