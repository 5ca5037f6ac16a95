"""What `conformance gate` prints: a row for each class or system that moved, then what fails, then one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from conformance.gate import Report
from conformance.gate.baseline import Baseline
from conformance.gate.judge import Change, Status
from conformance.report.console import figure, open_console, plain

STYLES = {
    Status.SAME: "green",
    Status.NEW: "cyan",
    Status.MOVED: "yellow",
    Status.WAIVED: "yellow",
    Status.GONE: "red",
    Status.DIVERGED: "red",
}
SCHEMA = 1
EXAMPLES = 2  # failing cases that are described per group


@dataclass(frozen=True)
class Group:
    """The changes of one scheduler class or one system of fixtures, of one status, worst first."""

    name: str
    status: Status
    changes: list[Change]

    @property
    def outputs(self) -> int:
        return sum(len(change.moved) for change in self.changes)

    @property
    def max_ulp(self) -> float | None:
        return max((c.max_ulp for c in self.changes if c.max_ulp is not None), default=None)

    @property
    def max_error(self) -> float | None:
        return max((c.max_error for c in self.changes if c.max_error is not None), default=None)

    @property
    def first_step(self) -> int | None:
        return min((c.step for c in self.changes if c.step is not None), default=None)


def grouped(changes: Iterable[Change]) -> list[Group]:
    """Everything but what stayed the same, by class or system and status, in order of first appearance."""
    found: dict[tuple[str, Status], list[Change]] = {}
    for change in changes:
        if change.status is not Status.SAME:
            parts = change.id.split("/")
            name = "/".join(parts[:2]) if parts[0] == "probe" else parts[0]
            found.setdefault((name, change.status), []).append(change)
    severity = lambda change: (-(change.max_error or 0.0), change.id)
    return [Group(name, status, sorted(members, key=severity)) for (name, status), members in found.items()]


def counted(report: Report) -> str:
    """`412 cases: 400 same, 12 diverged`."""
    counts = Counter(change.status for change in report.changes)
    parts = ", ".join(f"{counts[status]} {status.value}" for status in STYLES if counts[status])
    return f"{len(report.changes)} cases: {parts or 'none'}"


def print_report(report: Report, strict: bool) -> None:
    """Print the groups, a few examples of what fails, warnings, and the counts."""
    console = open_console()
    for warning in report.warnings:
        console.print(f"[bold yellow]warning: {plain(warning)}[/]", soft_wrap=True)
    groups = grouped(report.changes)
    if groups:
        console.print(_table(groups))
    red = {change.id for change in report.failing(strict)}
    for group in groups:
        failing = [change for change in group.changes if change.id in red]
        for change in failing[:EXAMPLES]:
            title = f" ({plain(change.title)})" if change.title else ""
            console.print(f"[red]{change.id}[/]{title}: {plain(change.detail)}", soft_wrap=True)
        if len(failing) > EXAMPLES:
            console.print(f"  and {len(failing) - EXAMPLES} more of {group.name}", soft_wrap=True)
    for complaint in report.complaints:
        console.print(f"[red]{plain(complaint)}[/]", soft_wrap=True)
    name = f"{report.baseline.implementation} (baseline of {report.baseline.version})"
    console.print(f"{plain(name)}: {counted(report)}", soft_wrap=True)


def print_baseline(baseline: Baseline, path: Path) -> None:
    """Print what a new baseline holds."""
    probes = Counter(case.cls for case in baseline.cases.values() if case.cls)
    verdicts = Counter(case.verdict for case in baseline.cases.values() if not case.cls)
    fixtures = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    console = open_console()
    console.print(
        f"{path}: {plain(baseline.implementation)} {baseline.version}, torch {baseline.environment['torch']}: "
        f"{sum(verdicts.values())} fixtures{f' ({fixtures})' if fixtures else ''}, {sum(probes.values())} probes of "
        f"{len(probes)} scheduler classes, {path.stat().st_size / 1e6:.1f} MB",
        soft_wrap=True,
    )


def report_data(report: Report, strict: bool) -> dict[str, Any]:
    """The report as JSON data (schema 1); cases that stayed the same are only counted."""
    counts = Counter(change.status.value for change in report.changes)
    return {
        "schema": SCHEMA,
        "implementation": report.baseline.implementation,
        "baseline_version": report.baseline.version,
        "device": report.baseline.device,
        "dtype": report.baseline.dtype,
        "strict": strict,
        "passed": not report.failing(strict) and not report.complaints,
        "counts": {status.value: counts[status.value] for status in Status},
        "warnings": report.warnings,
        "complaints": report.complaints,
        "changes": [change.to_dict() for change in report.changes if change.status is not Status.SAME],
    }


def _table(groups: list[Group]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("class or system", "status", "cases", "outputs", "max ulp", "max error", "from step"):
        left = name in ("class or system", "status")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for group in groups:
        table.add_row(
            group.name,
            f"[{STYLES[group.status]}]{group.status.value}[/]",
            str(len(group.changes)),
            str(group.outputs),
            figure(group.max_ulp, ".3g"),
            figure(group.max_error, ".1e"),
            "" if group.first_step is None else str(group.first_step),
        )
    return table
