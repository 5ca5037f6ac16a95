"""The console report: a table of cases, counts by verdict, the distribution of ρ."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

STYLES = {
    "bitwise": "green",
    "equivalent": "green",
    "waived": "yellow",
    "unsupported": "magenta",
    "divergent": "red",
    "error": "bold red",
}


def open_console() -> Console:
    """A console that never cuts a table: as wide as the terminal, or 160 columns where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_summary(results: list[dict[str, Any]], complaints: list[str], every_case: bool) -> None:
    """Print cases (all, or those that did not pass), counts and complaints about expectations."""
    console = open_console()
    shown = results if every_case else [r for r in results if r["verdict"] not in ("bitwise", "equivalent")]
    if shown:
        console.print(_table(shown))
    for result in shown:
        if result["message"]:
            console.print(f"[{STYLES[result['verdict']]}]{result['id']}[/]: {plain(result['message'])}", soft_wrap=True)
    counts = Counter(result["verdict"] for result in results)
    line = ", ".join(f"[{STYLES[verdict]}]{counts[verdict]} {verdict}[/]" for verdict in STYLES if counts[verdict])
    ratios = [r["rho"] for r in results if r["rho"] is not None and r["verdict"] in ("bitwise", "equivalent")]
    if ratios:
        line += f"; ρ median {statistics.median(ratios):.2f}, max {max(ratios):.2f}"
    if results:
        name = f"{results[0]['implementation']} {results[0]['version']}"
        console.print(f"{len(results)} fixtures on {plain(name)}: {line}", soft_wrap=True)
    for complaint in complaints:
        console.print(f"[red]{plain(complaint)}[/]", soft_wrap=True)


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("case", "verdict", "ρ", "error", "floor", "first divergence"):
        justify: Any = "right" if name in ("ρ", "error", "floor") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "case", overflow="fold")
    for result in results:
        first = result["first_divergence"]
        where = "" if not first else first["tap"] + ("" if first["step"] is None else f" step {first['step']}")
        style = STYLES[result["verdict"]]
        table.add_row(
            result["id"],
            f"[{style}]{result['verdict']}[/]",
            figure(result["rho"], ".2f"),
            figure(result["max_error"], ".1e"),
            figure(result["noise_floor"], ".1e"),
            where,
        )
    return table


def figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def plain(text: str) -> str:
    return str(text).replace("[", "\\[")
