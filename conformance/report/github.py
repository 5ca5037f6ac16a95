"""Reports for GitHub Actions: a job summary and annotations, within GitHub's limits.

A step's summary may have 1 MiB and a step shows ten annotations of each type, so the summary is cut, with a count of
what was left out, and annotations are aggregated. Nothing is written outside of GitHub Actions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from conformance.gate import Report

SUMMARY_LIMIT = 1024 * 1024 - 1024  # bytes of one step's summary, with room for what others add
ANNOTATION_LIMIT = 10
NAMED = 3  # cases that an annotation names
DETAIL = 300  # characters of a detail
Level = Literal["error", "warning", "notice"]
PASSING = ("bitwise", "equivalent")


def report_run(results: Sequence[Mapping[str, Any]], complaints: Sequence[str]) -> None:
    """Write the summary and annotations of a run.

    Args:
        results: one mapping per case, as `CaseResult.to_dict` gives it, plus `implementation` and `version`.
        complaints: about expectations and damaged fixtures.
    """
    if not _on_github():
        return
    counts = Counter(result["verdict"] for result in results)
    title = "conformance run"
    if results:
        title += f": {results[0]['implementation']} {results[0]['version']}"
    head = [f"### {_text(title)}", "", ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()) or "no case"]
    head += ["", *(f"- {_text(complaint)}" for complaint in complaints), "", "| case | verdict | ρ | error | detail |",
             "|---|---|---:|---:|---|"]  # fmt: skip
    shown = [result for result in results if result["verdict"] not in PASSING]
    rows = [
        _row(r["id"], r["verdict"], _figure(r["rho"], ".2f"), _figure(r["max_error"], ".1e"), r["message"])
        for r in shown
    ]
    _write_summary(head if rows else head[:-2], rows)
    failing = [(f"{r['id'].split('/')[0]}: {r['verdict']}", r["id"], r["message"]) for r in results
               if r["verdict"] in ("divergent", "error")]  # fmt: skip
    _annotate("error", [*_aggregated(failing), *(("conformance", complaint) for complaint in complaints)])
    unsupported = [("unsupported", r["id"], r["message"]) for r in results if r["verdict"] == "unsupported"]
    _annotate("warning", _aggregated(unsupported))


def report_gate(report: Report, strict: bool) -> None:
    """Write the summary and annotations of a gate."""
    if not _on_github():
        return
    from conformance.gate.console import counted, grouped

    groups = grouped(report.changes)
    red = {change.id for change in report.failing(strict)}
    verdict = "fails" if red or report.complaints else "passes"
    head = [f"### conformance gate {verdict}: {_text(report.baseline.implementation)}", "", counted(report), ""]
    head += [f"- {_text(line)}" for line in (*report.warnings, *report.complaints)]
    if groups:
        head += ["", "| class or system | status | cases | outputs | max ulp | max error | from step |",
                 "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for g in groups:
            step = "" if g.first_step is None else str(g.first_step)
            head.append(_row(g.name, g.status.value, str(len(g.changes)), str(g.outputs), _figure(g.max_ulp, ".3g"),
                             _figure(g.max_error, ".1e"), step))  # fmt: skip
        head += ["", "| case | status | detail |", "|---|---|---|"]
    rows = [
        _row(c.id, c.status.value, f"{c.title}: {c.detail}" if c.title else c.detail) for g in groups for c in g.changes
    ]
    _write_summary(head, rows)
    failing = [(f"{g.name}: {g.status.value}", c.id, c.detail) for g in groups for c in g.changes if c.id in red]
    moved = [(f"{g.name}: {g.status.value}", c.id, c.detail) for g in groups for c in g.changes if c.id not in red]
    _annotate("error", [*_aggregated(failing), *(("conformance gate", c) for c in report.complaints)])
    _annotate("warning", [*(("conformance gate", w) for w in report.warnings), *_aggregated(moved)])


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _write_summary(head: list[str], rows: list[str]) -> None:
    """Append to the step's summary as many rows as fit, and say how many did not."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    file = Path(path)
    room = SUMMARY_LIMIT - (file.stat().st_size if file.exists() else 0)
    lines = list(head)
    used = sum(len(line.encode()) + 1 for line in lines)
    left_out = 0
    for number, row in enumerate(rows):
        size = len(row.encode()) + 1
        if used + size > room - 100:
            left_out = len(rows) - number
            break
        lines.append(row)
        used += size
    if left_out:
        lines += ["", f"{left_out} more cases are left out here."]
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n\n")


def _aggregated(cases: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(title, message) per title, from (title, case, detail): how many cases, the first of them, one detail."""
    by_title: dict[str, list[tuple[str, str]]] = {}
    for title, case, detail in cases:
        by_title.setdefault(title, []).append((case, detail))
    found = []
    for title, members in by_title.items():
        names = ", ".join(case for case, _ in members[:NAMED])
        more = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        found.append((title, f"{len(members)} cases: {names}{more}. {members[0][1][:DETAIL]}"))
    return found


def _annotate(level: Level, messages: list[tuple[str, str]]) -> None:
    """Print at most ten annotations; the last stands for the rest where there are more."""
    if len(messages) > ANNOTATION_LIMIT:
        rest = messages[ANNOTATION_LIMIT - 1 :]
        titles = ", ".join(title for title, _ in rest)
        messages = [*messages[: ANNOTATION_LIMIT - 1], (f"{len(rest)} more", titles[: 3 * DETAIL])]
    for title, message in messages:
        print(f"::{level} title={_property(title)}::{_data(message)}", flush=True)


def _data(text: str) -> str:
    """Text of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _row(*cells: str) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(cell: str) -> str:
    """One line of Markdown that means itself."""
    escaped = str(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
    return escaped if len(escaped) <= 2 * DETAIL else escaped[: 2 * DETAIL] + "…"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
