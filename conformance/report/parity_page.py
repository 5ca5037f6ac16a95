"""The public page on an implementation: every fixture's verdict, how far the result is off, from where, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conformance.explain import Explanation, explain
from conformance.explain.trial import Finding
from conformance.files import write_atomically
from conformance.implementations.base import Implementation
from conformance.library import Library
from conformance.replay import Settings

VERDICTS = ("bitwise", "equivalent", "waived", "divergent", "unsupported", "error")
GREEN = VERDICTS[:3]

READING = """\
`off` is the distance of a sampler's result from the original's after the whole run with the same draws, relative; for
networks and pipelines it is the largest error of any output. `first` is where the implementation leaves the original:
the network's times, a table, a step that is given the original's state and network output (`step`), or only the whole
run (`sample`), in float32 or in float64 arithmetic (`.f64`). `why` names known causes that were tried by running again
with the suspect changed, and removed the divergence or, where marked, a part of it; nothing is named on suspicion."""


def write_parity_page(
    path: Path, report: Mapping[str, Any], library: Library, implementation: Implementation, settings: Settings | None
) -> None:
    """Write the page on a run as Markdown, atomically.

    Args:
        report: the run's JSON report.
        library: of the fixtures that were run.
        settings: those of the run, to try the causes of every divergent sampler with; None: none are tried.
    """
    results = report["cases"]
    titles = {result["id"]: library.get(result["id"]).manifest.title for result in results}
    causes = None
    if settings is not None:
        divergent = [r["id"] for r in results if r["verdict"] == "divergent" and r["kind"] == "scheduler"]
        tried = tqdm(divergent, desc="trying causes", unit="case", leave=False)
        causes = {case: _why(explain(library.get(case), implementation, settings)) for case in tried}
    name = f"{report['implementation']['name']} {report['implementation']['version']}"
    write_atomically(path, page(name, results, titles, causes))


def _why(explanation: Explanation) -> str:
    """The causes that were confirmed, in order, and "(partly)" after one that removes a part of the divergence."""
    hints = explanation.hints
    return "; ".join(hint.cause + (" (partly)" if hint.finding is Finding.PARTLY else "") for hint in hints)


def page(
    name: str, results: Sequence[Mapping[str, Any]], titles: Mapping[str, str], causes: Mapping[str, str] | None
) -> str:
    """The page as Markdown.

    Args:
        name: of the implementation, with its version.
        results: cases as in the JSON report, sorted by id.
        titles: what each case is, by id.
        causes: why, by id, of the cases whose causes were tried; None if none were.
    """
    lines = [f"# {name} beside the original code", "", _totals(results), "", READING, ""]
    lines += ["## By original", "", _row("original", *VERDICTS), "|---|" + "--:|" * len(VERDICTS)]
    systems = [(system, list(cases)) for system, cases in groupby(results, key=lambda r: r["id"].partition("/")[0])]
    for system, cases in systems:
        count = Counter(case["verdict"] for case in cases)
        lines.append(_row(f"[{system}](#{system.replace('.', '')})", *(str(count[verdict]) for verdict in VERDICTS)))
    if causes is not None:
        lines += ["", "## By cause", "", _row("cause", "cases"), "|---|--:|"]
        named = Counter(part for why in causes.values() for part in why.split("; ") if part)
        lines += [_row(cause, str(cases)) for cause, cases in named.most_common()]
        lines.append(_row("none of those that were tried", str(sum(not why for why in causes.values()))))
    for system, cases in systems:
        lines += ["", f"## {system}", "", _row("case", "what", "verdict", "off", "first", "why")]
        lines += ["|---|---|---|--:|---|---|", *(_case(case, titles, causes or {}) for case in cases)]
    return "\n".join(lines) + "\n"


def _case(case: Mapping[str, Any], titles: Mapping[str, str], causes: Mapping[str, str]) -> str:
    first = case["first_divergence"]
    where = "" if not first else first["tap"] + ("" if first["step"] is None else f" at {first['step']}")
    off = case["result_error"] if case["kind"] == "scheduler" else case["max_error"]
    why = causes.get(case["id"], "")
    if case["verdict"] in ("unsupported", "error"):
        why = case["message"]
    elif case["draws_match"] is False:
        why = "; ".join(filter(None, (why, "draws differ from the original's")))
    verdict = case["verdict"] if case["verdict"] in GREEN else f"**{case['verdict']}**"
    return _row(
        case["id"].partition("/")[2], titles[case["id"]], verdict, "" if off is None else f"{off:.1e}", where, why
    )


def _totals(results: Iterable[Mapping[str, Any]]) -> str:
    count = Counter(result["verdict"] for result in results)
    counted = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])
    return f"{sum(count.values())} fixtures: {counted}."


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
