"""`conformance gate`: did a change move any number, where, by how much, and is it a divergence?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import Device, Dtype, Implementation, Pythonpath, Select, guarded
from conformance.errors import ConformanceError


@guarded
def gate(
    baseline: Annotated[Path, typer.Option(help="The file that holds the outputs before the change.")],
    select: Select = None,
    update: Annotated[bool, typer.Option("--update", help="Write the baseline instead of comparing with it.")] = False,
    implementation: Implementation = "diffusers_ref",
    pythonpath: Pythonpath = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on moved bits, not only on divergences.")] = False,
    expectations: Annotated[Path | None, typer.Option(help="TOML file of intended divergences with reasons.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    workers: Annotated[str, typer.Option("-n", help="Parallel processes, a number or auto.")] = "auto",
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Compare every output with a baseline that was taken before a change: fixtures, and probes of all schedulers."""
    from conformance.expectations import applicable, read_expectations
    from conformance.files import write_atomically
    from conformance.gate import hold, take
    from conformance.gate.baseline import read_baseline
    from conformance.gate.console import print_baseline, print_report, report_data
    from conformance.gate.workers import default_workers
    from conformance.implementations import open_implementation
    from conformance.replay import Settings
    from conformance.report import github

    settings = Settings.of(device, dtype)
    if workers != "auto" and not workers.isdigit():
        raise ConformanceError(f"-n {workers}; allowed: a number or auto")
    processes = default_workers(device) if workers == "auto" else int(workers)
    for path in (baseline, report):
        if path is not None and not path.resolve().parent.is_dir():
            raise ConformanceError(f"{path}: there is no such folder")
    entries = read_expectations(expectations) if expectations is not None else []
    before = None if update else read_baseline(baseline)
    under_gate = open_implementation(implementation, pythonpath)
    if before is None:
        taken = take(under_gate, settings, select or (), processes)
        taken.write(baseline)
        print_baseline(taken, baseline)
        return
    entries = applicable(entries, implementation, under_gate.version, device)
    found = hold(before, under_gate, settings, select or (), entries, strict, processes)
    print_report(found, strict)
    if report is not None:
        write_atomically(report, json.dumps(report_data(found, strict), indent=1, allow_nan=False) + "\n")
    github.report_gate(found, strict)
    raise typer.Exit(1 if found.failing(strict) or found.complaints else 0)
