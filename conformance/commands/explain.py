"""`conformance explain`: where an implementation first leaves the original."""

from __future__ import annotations

from typing import Annotated

import typer

from conformance.commands import Device, Dtype, Fixtures, Implementation, guarded


@guarded
def explain(
    case: Annotated[str, typer.Argument(help="A fixture's id.")],
    implementation: Implementation = "diffusers_ref",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    fixtures: Fixtures = None,
) -> None:
    """Say where an implementation first leaves the original: output, step, module, values."""
    from conformance.implementations import open_implementation
    from conformance.library import open_library
    from conformance.replay import Settings, replay
    from conformance.report.explanation import print_explanation

    fixture = open_library(fixtures).get(case)
    result = replay(fixture, open_implementation(implementation), Settings.of(device, dtype))
    print_explanation(fixture, result)
    raise typer.Exit(0 if result.verdict.green else 1)
