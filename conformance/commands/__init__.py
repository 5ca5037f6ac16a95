"""The commands of the command line, one file each. Importing them imports neither torch nor pytest."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from conformance.errors import ConformanceError

Select = Annotated[list[str] | None, typer.Argument(help="Systems or case patterns, such as ddim or 'ddim/*quad*'.")]
Implementation = Annotated[
    str, typer.Option(help="diffusers_ref, diffusers, path/to/file.py:Class or package.module:Class.")
]
Pythonpath = Annotated[
    Path | None, typer.Option(help="Folder to import the implementation from, such as a checkout's src.")
]
Device = Annotated[str, typer.Option(help="Torch device.")]
Dtype = Annotated[str, typer.Option(help="float32 (with its float64 check), float64, float16 or bfloat16.")]
Fixtures = Annotated[str | None, typer.Option(help="Fixture folder, or hub:owner/name@revision.")]
Tier = Annotated[str, typer.Option(help="default, full or hub.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Usage and environment errors become one line on stderr and exit code 2."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ConformanceError as error:
            typer.echo(f"conformance: {error}", err=True)
            raise typer.Exit(2) from None

    return run
