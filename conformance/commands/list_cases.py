"""`conformance list`: what is recorded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from conformance.commands import Fixtures, Select, guarded


@guarded
def list_cases(
    select: Select = None,
    fixtures: Fixtures = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the fixtures: id, kind, tier, title."""
    from conformance.library import open_library

    library = open_library(fixtures)
    manifests = [library.get(i).manifest for i in library.select(select or ())]
    if as_json:
        rows = [
            {"id": m.id, "kind": m.kind, "tier": m.tier, "title": m.title, "reference": m.reference.repository,
             "commit": m.reference.commit, "outputs": [output.name for output in m.outputs]}
            for m in manifests
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max(len(m.id) for m in manifests)
    for m in manifests:
        typer.echo(f"{m.id:<{width}}  {m.kind:<9}  {m.tier:<7}  {m.title}")
