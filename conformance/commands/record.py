"""`conformance record`: run an original and write its fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import Tier, guarded


@guarded
def record(
    system: Annotated[
        str,
        typer.Argument(help="ddim, ddpm, improved-diffusion, latent-diffusion, pndm, or path/to/recorder.py."),
    ],
    source: Annotated[Path, typer.Option(help="Checkout of the original at the pinned commit.")],
    cases: Annotated[list[str] | None, typer.Argument(help="Case patterns; all cases by default.")] = None,
    output: Annotated[Path, typer.Option(help="Fixture folder to write to.")] = Path("fixtures"),
    tier: Tier = "default",
    allow_modified: Annotated[bool, typer.Option(help="Record from another commit or a dirty checkout.")] = False,
) -> None:
    """Run an original and write its fixtures."""
    from conformance.recorders.recording import record as record_system

    for path in record_system(system, source, output, tuple(cases or ()), tier, allow_modified):
        typer.echo(str(path))
