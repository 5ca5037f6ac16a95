"""`conformance explain`: where an implementation first leaves the original, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import Device, Dtype, Fixtures, Implementation, Pythonpath, guarded
from conformance.errors import ConformanceError


@guarded
def explain(
    case: Annotated[str, typer.Argument(help="A fixture's id.")],
    implementation: Implementation = "diffusers_ref",
    pythonpath: Pythonpath = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    fixtures: Fixtures = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the explanation as JSON, too.")] = None,
) -> None:
    """Say where an implementation first leaves the original (output, step, module, values), and try known causes."""
    from conformance.explain import explain as explain_case
    from conformance.implementations import open_implementation
    from conformance.library import open_library
    from conformance.replay import Settings
    from conformance.report.explanation import print_explanation, write_explanation

    if report is not None and not report.resolve().parent.is_dir():
        raise ConformanceError(f"--json {report}: there is no such folder")
    fixture = open_library(fixtures).get(case)
    explanation = explain_case(fixture, open_implementation(implementation, pythonpath), Settings.of(device, dtype))
    print_explanation(explanation)
    if report is not None:
        write_explanation(explanation, report)
    raise typer.Exit(0 if explanation.result.verdict.green else 1)
