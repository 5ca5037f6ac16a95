"""`conformance new`: a folder for a port of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import guarded


@guarded
def new(
    name: Annotated[str, typer.Argument(help="Of the pipeline: my-sampler, my_sampler or MySampler.")],
    folder: Annotated[Path | None, typer.Option(help="Where; by default a folder of that name. Must be empty.")] = None,
) -> None:
    """Write a folder for a community pipeline, green from the start: pipeline, recorder, fixtures, parity test."""
    from conformance.scaffold import write_project

    written = write_project(name, folder if folder is not None else Path(name))
    typer.echo(f"{written}: {', '.join(sorted(path.name for path in written.iterdir()))}")
    typer.echo(f"next: cd {written} && pytest, then README.md")
