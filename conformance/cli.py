"""The command line: thin over pytest (which runs and selects) and the library. Importing it does not import torch.

Exit codes: 0 all pass, 1 a divergence, 2 a usage or environment error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from conformance.errors import ConformanceError

app = typer.Typer(
    name="conformance",
    help="Replay recordings of original paper code on an implementation: is it 1-to-1? If not, where does it diverge?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Select = Annotated[list[str] | None, typer.Argument(help="Systems or case patterns, such as ddim or 'ddim/*quad*'.")]
Implementation = Annotated[
    str, typer.Option(help="diffusers_ref, diffusers, path/to/file.py:Class or package.module:Class.")
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


@app.command("list")
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


@app.command()
@guarded
def run(
    select: Select = None,
    implementation: Implementation = "diffusers_ref",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    tier: Tier = "default",
    fixtures: Fixtures = None,
    expectations: Annotated[Path | None, typer.Option(help="TOML file of known divergences with reasons.")] = None,
    workers: Annotated[str, typer.Option("-n", help="Parallel workers, a number or auto.")] = "0",
    report: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
) -> None:
    """Replay fixtures on an implementation and report a verdict for each."""
    import pytest

    from conformance.expectations import read_expectations
    from conformance.fixture import TIERS
    from conformance.implementations import open_implementation
    from conformance.library import open_library
    from conformance.replay import Settings

    # Mistakes are said here in one line, before pytest starts.
    if tier not in TIERS:
        raise ConformanceError(f"tier {tier!r}; allowed: {', '.join(TIERS)}")
    open_library(fixtures).select(select or (), tier)
    Settings.of(device, dtype)
    open_implementation(implementation)
    if expectations is not None:
        read_expectations(expectations)
    if report is not None and not report.resolve().parent.is_dir():
        raise ConformanceError(f"--json {report}: there is no such folder")
    suite = Path(__file__).parent / "suite"
    arguments = [str(suite / "test_fixtures.py"), "-c", str(suite / "pytest.ini"), "--rootdir", str(suite)]
    arguments += ["-q", "--no-header", "--tb=no", "--no-summary", "--conformance-table"]
    # Plugins that only this suite's run time would notice.
    arguments += ["-p", "no:hypothesispytest", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # this package is imported already
    arguments += [f"--implementation={implementation}", f"--device={device}", f"--dtype={dtype}", f"--tier={tier}"]
    arguments += [f"--case={pattern}" for pattern in select or ()]
    arguments += [f"--conformance-fixtures={fixtures}"] if fixtures else []
    arguments += [f"--expectations={expectations}"] if expectations else []
    arguments += [f"--conformance-json={report.resolve()}"] if report else []
    arguments += ["-n", workers] if workers != "0" else []
    code = int(pytest.main(arguments))
    raise typer.Exit(code if code in (0, 1) else 2)


@app.command()
@guarded
def record(
    system: Annotated[
        str, typer.Argument(help="Which original: ddim, ddpm, improved-diffusion, latent-diffusion, pndm.")
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


@app.command()
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


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="conformance")


if __name__ == "__main__":
    main()
