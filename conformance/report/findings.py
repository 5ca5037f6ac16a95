"""What contracts found: a table of classes, and every finding with its smallest example."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from conformance.contracts.result import CheckResult, Status
from conformance.files import write_atomically
from conformance.report.console import open_console, plain

Findings = Mapping[str, Sequence[CheckResult]]
"""Class name -> one result per contract."""

FEW = 3
"""Up to so many classes, the reasons of what does not apply are printed; the JSON report always has them."""


def print_findings(implementation: str, by_class: Findings) -> None:
    """Print a line per class, every finding below, and the totals."""
    console = open_console()
    table = Table(box=None, pad_edge=False)
    for name in ("class", "passed", "failed", "waived", "not applicable", "seconds"):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    for name, results in by_class.items():
        count = Counter(result.status for result in results)
        failed = f"[red]{count[Status.FAILED]}[/]" if count[Status.FAILED] else "0"
        seconds = f"{sum(result.seconds for result in results):.1f}"
        table.add_row(
            plain(name),
            str(count[Status.PASSED]),
            failed,
            str(count[Status.WAIVED]),
            str(count[Status.NOT_APPLICABLE]),
            seconds,
        )
    console.print(table)
    for result in findings(by_class):
        style = "red" if result.status is Status.FAILED else "yellow"
        console.print(f"[{style}]{plain(result.subject)}, {result.name}[/]: {plain(told(result))}", soft_wrap=True)
    if len(by_class) <= FEW:
        for name, results in by_class.items():
            reasons = Counter(result.reason for result in results if result.status is Status.NOT_APPLICABLE)
            for reason, times in reasons.items():
                console.print(
                    f"{plain(name)}: {times} not applicable: {plain(reason)}", style="magenta", soft_wrap=True
                )
    console.print(summary(implementation, by_class), soft_wrap=True)


def write_markdown(path: Path, implementation: str, by_class: Findings, statements: Mapping[str, str]) -> None:
    """Write a page with the totals, the findings by contract and by class, and each finding, atomically.

    Args:
        statements: of the contracts, by name.
    """
    found = findings(by_class)
    lines = [f"# Contracts on {implementation}", "", summary(implementation, by_class) + ".", ""]
    lines += ["## By contract", "", "| contract | classes that fail it |", "|---|---|"]
    by_contract: dict[str, list[str]] = {}
    for result in found:
        by_contract.setdefault(result.name, []).append(result.subject)
    for name, subjects in sorted(by_contract.items(), key=lambda item: -len(item[1])):
        classes = ", ".join(f"`{subject}`" for subject in subjects)
        lines.append(_row(f"`{name}`: {statements.get(name, '')}", f"{len(subjects)}: {classes}"))
    lines += ["", "## By class", "", _row("class", *(status.value for status in Status), "mostly because")]
    lines.append("|---|--:|--:|--:|--:|---|")
    for name, results in by_class.items():
        count = Counter(result.status for result in results)
        reasons = Counter(result.reason for result in results if result.status is Status.NOT_APPLICABLE)
        mostly = reasons.most_common(1)[0][0] if 2 * count[Status.NOT_APPLICABLE] > len(results) else ""
        lines.append(_row(f"`{name}`", *(str(count[status]) for status in Status), mostly))
    lines += ["", "## Findings", "", "| class | contract | finding | smallest example |", "|---|---|---|---|"]
    for result in found:
        example = f"`{result.example}`" if result.example else ""
        lines.append(_row(f"`{result.subject}`", f"`{result.name}`", result.reason, example))
    write_atomically(path, "\n".join(lines) + "\n")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def write_json(path: Path, implementation: str, by_class: Findings) -> None:
    """Write every result as JSON, atomically; figures that are not finite become null."""
    results = [result.to_dict() for results in by_class.values() for result in results]
    write_atomically(
        path, json.dumps({"schema": 1, "implementation": implementation, "checks": results}, indent=1) + "\n"
    )


def findings(by_class: Findings) -> list[CheckResult]:
    """What failed, waived or not."""
    told = (Status.FAILED, Status.WAIVED)
    return [result for results in by_class.values() for result in results if result.status in told]


def told(result: CheckResult) -> str:
    """A finding in one line: reason, step, smallest example."""
    step = "" if result.step is None else f" (step {result.step})"
    return f"{result.reason}{step}{f' [{result.example}]' if result.example else ''}"


def summary(implementation: str, by_class: Findings) -> str:
    count = Counter(result.status for results in by_class.values() for result in results)
    checks = ", ".join(f"{count[status]} {status.value}" for status in Status)
    return f"{sum(count.values())} checks on {len(by_class)} classes of {implementation}: {checks}"
