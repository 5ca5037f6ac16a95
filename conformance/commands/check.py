"""`conformance check`: hold the contracts against an implementation's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import guarded


@guarded
def check(
    implementation: Annotated[
        str, typer.Argument(help="diffusers_ref, diffusers, path/to/file.py:Class or package.module:Class.")
    ] = "diffusers_ref",
    only: Annotated[list[str] | None, typer.Option(help="Class names or patterns (repeatable).")] = None,
    workers: Annotated[int, typer.Option("-n", min=1, help="Processes.")] = 1,
    expectations: Annotated[Path | None, typer.Option(help="TOML file of known failures with reasons.")] = None,
    seed: Annotated[int | None, typer.Option(help="Search at random from this seed; fixed examples without.")] = None,
    scale: Annotated[float, typer.Option(min=0.01, help="Multiplies the number of examples.")] = 1.0,
    report: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table of findings as Markdown.")] = None,
) -> None:
    """Hold the contracts against schedulers, networks and pipelines; a table of findings."""
    from concurrent.futures import ProcessPoolExecutor
    from functools import partial
    from multiprocessing import get_context

    from conformance.contracts.contract import Profile
    from conformance.contracts.holding import hold_all, statements, subject_names
    from conformance.contracts.result import Status
    from conformance.expectations import applicable, read_expectations, stale
    from conformance.implementations import open_implementation
    from conformance.report.findings import print_findings, write_json, write_markdown

    names = subject_names(implementation, only or ())
    entries = read_expectations(expectations) if expectations is not None else []
    version = open_implementation(implementation).version
    entries = applicable(entries, implementation, version, "cpu")
    hold = partial(hold_all, implementation, profile=Profile(scale, seed), expectations=entries)
    if workers == 1:
        by_class = {name: hold(name) for name in names}
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            by_class = dict(zip(names, pool.map(hold, names), strict=True))
    under_test = f"{implementation} {version}"
    print_findings(under_test, by_class)
    if report is not None:
        write_json(report, under_test, by_class)
    if markdown is not None:
        write_markdown(markdown, under_test, by_class, statements(implementation, names))
    results = [result for each in by_class.values() for result in each]
    complaints = stale(entries, [(result.id, result.status.value) for result in results])
    for complaint in complaints:
        typer.echo(complaint)
    failed = any(result.status is Status.FAILED for result in results)
    raise typer.Exit(1 if failed or complaints else 0)
