"""What `conformance explain` prints: every output of one case, and the first divergence in full."""

from __future__ import annotations

from rich.table import Table

from conformance.compare import FLOAT64, Comparison
from conformance.fixture import Fixture
from conformance.replay import CaseResult
from conformance.report.console import STYLES, figure, open_console, plain


def print_explanation(fixture: Fixture, result: CaseResult) -> None:
    """Print the verdict, the outputs in the order of explanation, and where and how the first one diverges."""
    console = open_console()
    manifest = fixture.manifest
    console.print(f"{manifest.id}: {plain(manifest.title)}")
    console.print(f"  {plain(manifest.paper.title)} (arXiv:{manifest.paper.arxiv}), {plain(manifest.paper.location)}")
    console.print(
        f"  {manifest.reference.repository}@{manifest.reference.commit[:12]}: {', '.join(manifest.reference.functions)}"
    )
    console.print(f"verdict: [{STYLES[result.verdict.value]}]{result.verdict.value}[/]")
    if result.comparisons:
        console.print(_table(result.comparisons))
    if result.draws_match is not None:
        console.print(
            f"random stream: {'as the original' if result.draws_match else 'not consumed as by the original'}"
        )
    first = result.first_divergence
    if first is not None:
        console.print(f"first divergence: [red]{first.output}[/]{_where(fixture, first)}")
        console.print(f"  {plain(first.detail)}")
    elif result.message:
        console.print(plain(result.message))


def _where(fixture: Fixture, comparison: Comparison) -> str:
    if comparison.step is None:
        return ""
    times = fixture.tensors.get("times")
    by_step = comparison.output.split(".")[0] in ("step", "sample", "pred_original_sample")
    if times is None or not by_step or comparison.step >= len(times):
        return f" at index {comparison.step}"
    return f" at step {comparison.step} of {len(times)} (network time {times[comparison.step].item():g})"


def _table(comparisons: list[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("output", "verdict", "ρ", "error", "floor", "step"):
        table.add_column(name, justify="left" if name in ("output", "verdict") else "right", no_wrap=True)
    for c in comparisons:
        table.add_row(
            c.output,
            f"[{STYLES[c.verdict.value]}]{c.verdict.value}[/]",
            figure(None if c.output.endswith(FLOAT64) else c.rho, ".2f"),  # float64 is held to the floor column itself
            figure(c.error, ".1e"),
            figure(c.floor, ".1e"),
            "" if c.step is None else str(c.step),
        )
    return table
